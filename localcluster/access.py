"""Rights for the cluster's own host processes, each under a user of its own."""

from localcluster.api import Api, Object

RBAC = "rbac.authorization.k8s.io"


def grant(api: Api, user: str, rules: list[Object]) -> None:
    """Let `user` (a certificate's name) do what `rules` say in all namespaces, and nothing else."""
    kind = {"apiVersion": f"{RBAC}/v1", "metadata": {"name": user}}
    binding = {
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": user},
        "subjects": [{"apiGroup": RBAC, "kind": "User", "name": user}],
    }
    api.apply(f"/apis/{RBAC}/v1/clusterroles/{user}", {**kind, "kind": "ClusterRole", "rules": rules})
    api.apply(f"/apis/{RBAC}/v1/clusterrolebindings/{user}", {**kind, "kind": "ClusterRoleBinding", **binding})
