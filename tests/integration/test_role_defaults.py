"""Role defaults say something sensible for an inventory that says little."""

import json
import subprocess
import sys
from pathlib import Path

from tests.support.agents import of_ansible

TOP = Path(__file__).resolve().parents[2]
ANSIBLE = Path(sys.executable).parent / "ansible-playbook"
INVENTORY = """
dc_east: { hosts: { e1: { ansible_host: 192.0.2.1 }, e2: { ansible_host: east-two.example.org }, e3: {} } }
dc_west: { hosts: { w1: { ansible_host: 192.0.2.11 } } }
mesh_servers: { hosts: { e1: , e3: , w1: } }
mesh_clients: { hosts: { e2: } }
"""
PLAY = """
- hosts: all
  gather_facts: false
  connection: local
  vars:
    ansible_facts: { default_ipv4: { address: 198.51.100.7 } }
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
  vars_files: [ {top}/roles/mesh_agent/defaults/main.yml, {top}/roles/mesh_agent/vars/main.yml ]
  tasks:
    - ansible.builtin.copy:
        dest: "{out}/{{ inventory_hostname }}.json"
        content: "{{ [mesh_agent_datacenter, mesh_agent_bind_addr, mesh_agent_retry_join, mesh_agent_retry_join_wan] | to_json }}"
        mode: "0644"
"""


def test_addresses_of_other_hosts(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text(INVENTORY, encoding="utf-8")
    play = PLAY.replace("{top}", str(TOP)).replace("{out}", str(tmp_path))
    (tmp_path / "play.yml").write_text(play, encoding="utf-8")
    line = [str(ANSIBLE), "-i", "hosts.yml", "play.yml"]
    environment = {**of_ansible(), "ANSIBLE_HOME": str(tmp_path / "home")}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("*.json")}
    assert found == {
        "e1": ["east", "192.0.2.1", ["e3"], ["192.0.2.11"]],
        "e2": ["east", "198.51.100.7", ["192.0.2.1", "e3"], ["192.0.2.11"]],
        "e3": ["east", "198.51.100.7", ["192.0.2.1"], ["192.0.2.11"]],
        "w1": ["west", "192.0.2.11", [], ["192.0.2.1", "e3"]],
    }
