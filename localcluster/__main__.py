"""python3 -m localcluster up | down | status | kubeconfig | build | images"""

import argparse
import sys
from dataclasses import replace

from localcluster import cluster, control_plane, images, settings, toolchain
from localcluster.errors import LocalclusterError


def main() -> int:
    """Run one command; 0 when done, 1 with one sentence on stderr when not."""
    arguments = _parser().parse_args()
    chosen = settings.read()
    if arguments.control_plane_only:
        chosen = replace(chosen, directory=chosen.directory.with_name(chosen.directory.name + "-control-plane"))
    try:
        return _run(arguments, chosen)
    except LocalclusterError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command again takes up where this one was", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace, chosen: settings.Settings) -> int:
    match arguments.command:
        case "up" if arguments.control_plane_only:
            cluster.up_control_plane(chosen)
        case "up":
            cluster.up(chosen)
        case "down" if arguments.control_plane_only:
            control_plane.ControlPlane(chosen.directory, chosen.kubeconfig).stop()
        case "down":
            cluster.down(chosen)
        case "status":
            return _print_status(chosen)
        case "kubeconfig":
            print(chosen.kubeconfig.read_text() if arguments.content else chosen.kubeconfig)
        case "build":
            toolchain.build_all(chosen.cache)
        case "images":
            images.ensure(chosen, arguments.names)
    return 0


def _print_status(chosen: settings.Settings) -> int:
    """A table of the parts; 0 only if all are as they should be, so that a script can ask."""
    rows = cluster.states(chosen)
    for part, state, detail in (("PART", "STATE", "DETAIL"), *rows):
        print(f"{part:<26}{state:<10}{detail}")
    return 0 if {state for _, state, _ in rows} <= {"Running", "Ready"} else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="localcluster", description="A real Kubernetes of one node on this machine.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    texts = {
        "up": "start the cluster, or what of it does not run; returns when the node is Ready",
        "down": "stop and remove all of it; binaries and images stay in the cache",
        "status": "a table of the parts; exit code 0 if all of them run",
        "kubeconfig": "print the path of the administrator's kubeconfig",
        "build": "build every program now, so that `up` need not",
        "images": "build the container images that changed and push them to the cluster's registry",
    }
    for name, text in texts.items():
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(control_plane_only=False)
        if name in ("up", "down", "kubeconfig"):
            meaning = "etcd, API server, controllers and scheduler; no node, no root"
            command.add_argument("--control-plane-only", action="store_true", help=meaning)
        if name == "images":
            command.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(images.NAMES)}; none means all")
        if name == "kubeconfig":
            command.add_argument("--content", action="store_true", help="print the file itself")
    return parser


if __name__ == "__main__":
    sys.exit(main())
