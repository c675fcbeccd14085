"""Give the cluster's Corefile a server block that forwards the mesh's domains: corefile.py PORT DOMAIN,DOMAIN ADDRESS,ADDRESS

Nothing of the rest is lost. It is forwarded to the service kube-system/mesh-dns (the agent of the pod's node), then to the addresses.
Prints `written` when something changed.
"""

import json
import subprocess
import sys

BEGIN = "# BEGIN mesh (managed by the role coredns)"
END = "# END mesh"
KUBECTL = ["kubectl", "--kubeconfig=/etc/kubernetes/admin.conf", "--namespace=kube-system"]


def main(port, domains, fallback):
    read = subprocess.run(
        [*KUBECTL, "get", "service/mesh-dns", "configmap/coredns", "-o", "json"],
        capture_output=True,
        text=True,
        check=True,
    )
    service, config = json.loads(read.stdout)["items"]
    upstreams = [service["spec"]["clusterIP"], *(f"{address}:{port}" for address in fallback.split(",") if address)]
    body = ["errors", f"forward . {' '.join(upstreams)} {{", "    policy sequential", "}"]
    found = config["data"]["Corefile"]
    wanted = merge(found, body, domains.split(","))
    if wanted != found:
        patch = json.dumps({"data": {"Corefile": wanted}})
        subprocess.run(
            [*KUBECTL, "patch", "configmap", "coredns", "--patch", patch], check=True, stdout=subprocess.DEVNULL
        )
        sys.stdout.write("written\n")


def merge(corefile, body, domains):
    """The Corefile with a server block for `domains`: where it was, or at the end. SystemExit if somebody else has a block for one of them."""
    before, found, after = corefile.partition(BEGIN)
    if found:
        _, ended, after = after.partition(END)
        if not ended:
            sys.exit(f"the Corefile has {BEGIN!r} but not {END!r}; repair it in ConfigMap kube-system/coredns")
    elif before and not before.endswith("\n"):
        before += "\n"
    taken = sorted(set(zones(before + after)) & {zone(domain) for domain in domains})
    if taken:
        sys.exit(
            f"the Corefile has a server block for {', '.join(taken)} already; remove it from ConfigMap kube-system/coredns, or name other coredns_domains"
        )
    header = " ".join(f"{domain}:53" for domain in domains)
    lines = [BEGIN, header + " {", *(f"    {line}" for line in body), "}", END]
    return before + "\n".join(lines) + (after if found else "\n")


def zones(corefile):
    """Zones that the server blocks are for."""
    depth = 0
    for line in corefile.splitlines():
        for word in line.partition("#")[0].replace(",", " ").split():
            if word in ("{", "}"):
                depth += 1 if word == "{" else -1
            elif not depth and not word.startswith("("):
                yield zone(word)


def zone(text):
    """`dns://Mesh.:53` is the zone mesh."""
    return text.rpartition("://")[2].partition(":")[0].rstrip(".").lower() or "."


if __name__ == "__main__":
    main(*sys.argv[1:])
