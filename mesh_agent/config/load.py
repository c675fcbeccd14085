"""Read settings: one TOML file < environment < flags. The only place that reads files and the environment for settings.

Environment: `MESH_` + the key in upper case, tables joined by two underscores (`MESH_NODE_NAME`, `MESH_PORTS__HTTP=8600`, `MESH_RETRY_JOIN=a,b`).
Variables of the CLI and the lab (`MESH_HTTP_ADDR`, `MESH_LAB_*`, ...) are not settings of the agent and are left alone.
"""

import base64
import binascii
import json
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from mesh_agent.config.check import mistakes
from mesh_agent.config.settings import AgentConfig
from mesh_agent.errors import ConfigError

PREFIX = "MESH_"
_NOT_SETTINGS = ("MESH_HTTP_ADDR", "MESH_HTTP_TOKEN", "MESH_LAB", "MESH_ENVOY", "MESH_OUTPUT", "MESH_CONFIG_FILE")
_SECRETS = (("encrypt_file", "encrypt"), ("encrypt_wan_file", "encrypt_wan"), ("join_token_file", "join_token"))


def load(path: Path | None, environ: Mapping[str, str], flags: Mapping[str, Any]) -> AgentConfig:
    """The settings of an agent; ConfigError names the file (or variable, or flag) and the key of the first mistake.

    `flags` holds only what the user gave; its keys are the setting's names, tables as dotted names (`ports.http`).
    """
    tree: dict[str, Any] = {}
    origin = "flags"
    if path is not None:
        origin = str(path)
        tree = _read(path)
        _convert(tree | {"node_name": tree.get("node_name", "x")}, origin)
    _overlay(tree, _from_environment(environ))
    for dotted, value in flags.items():
        _put(tree, dotted.split("."), value)
    if not tree.get("node_name"):
        raise ConfigError(f"{origin}: node_name is missing; set it in the file, as MESH_NODE_NAME, or with --node-name")
    return _checked(_with_secrets(_convert(tree, f"{origin}, environment or flags"), origin), origin)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: there is no such file; give another with --config-file, or start with `mesh agent --dev`"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def _convert(tree: dict[str, Any], origin: str) -> AgentConfig:
    try:
        return msgspec.convert(tree, AgentConfig)
    except msgspec.ValidationError as error:
        text = str(error)
        where = text.rpartition(" - at `")[2].rstrip("`").removeprefix("$.") if " - at `" in text else "top level"
        raise ConfigError(f"{origin}: {where}: {text.partition(' - at ')[0]}") from error


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, text in sorted(environ.items()):
        if not name.startswith(PREFIX) or name.startswith(_NOT_SETTINGS):
            continue
        keys = name.removeprefix(PREFIX).lower().split("__")
        wanted = _type_at(AgentConfig, keys)
        if wanted is None:
            raise ConfigError(f"environment variable {name}: there is no setting {'.'.join(keys)!r}")
        _put(tree, keys, _parse(text, wanted, name))
    return tree


def _type_at(struct: type, keys: list[str]) -> Any:
    hints = typing.get_type_hints(struct)
    wanted = hints.get(keys[0])
    if len(keys) == 1 or wanted is None:
        return wanted
    return _type_at(wanted, keys[1:]) if isinstance(wanted, type) and issubclass(wanted, msgspec.Struct) else None


def _parse(text: str, wanted: Any, name: str) -> Any:
    origin = typing.get_origin(wanted)
    if origin is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    if origin is dict:
        try:
            return json.loads(text)
        except ValueError as error:
            raise ConfigError(f"environment variable {name}: expected a JSON object: {error}") from error
    if origin in (typing.Union, types.UnionType):
        wanted = next(kind for kind in typing.get_args(wanted) if kind is not type(None))
    try:
        return msgspec.convert(text, wanted, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"environment variable {name}: {error}") from error


def _overlay(tree: dict[str, Any], over: dict[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict) and key != "node_meta":
            _overlay(tree[key], value)
        else:
            tree[key] = value


def _put(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = value


def _with_secrets(config: AgentConfig, origin: str) -> AgentConfig:
    for file_key, key in _SECRETS:
        path = getattr(config, file_key)
        if path and not getattr(config, key):
            try:
                secret = Path(path).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"{origin}: {file_key}: {path} cannot be read: {error}") from error
            config = msgspec.structs.replace(config, **{key: secret})
    return config


def _checked(config: AgentConfig, origin: str) -> AgentConfig:
    for key in ("encrypt", "encrypt_wan"):
        value = getattr(config, key)
        if value and _key_length(value) not in (16, 24, 32):
            raise ConfigError(f"{origin}: {key} must be 16, 24 or 32 bytes in base64; `mesh keygen` makes one")
    for key, text in mistakes(config):
        raise ConfigError(f"{origin}: {key} {text}")
    _check_kubernetes(config, origin)
    return config


def _check_kubernetes(config: AgentConfig, origin: str) -> None:
    settings = config.kubernetes
    for key in ("controllers", "injectors"):
        for account in getattr(settings, key):
            if account.count("/") != 1 or not all(account.split("/")):
                raise ConfigError(
                    f"{origin}: kubernetes.{key}: {account!r} is no service account; write namespace/name"
                )
    if not settings.api:
        return
    if not settings.api.startswith(("https://", "http://")):
        raise ConfigError(f"{origin}: kubernetes.api is {settings.api!r}; give a URL such as https://10.0.0.1:6443")
    for key in ("ca_file", "token_file"):
        if settings.api.startswith("https://") and not getattr(settings, key):
            raise ConfigError(f"{origin}: kubernetes.{key} is missing; without it nothing of the cluster can be read")


def _key_length(text: str) -> int:
    try:
        return len(base64.b64decode(text, validate=True))
    except binascii.Error:
        return 0
