"""The cluster as a person reaches it: by a kubeconfig's context, in one namespace, under a field manager of its own."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator

from finetune_operator.apiserver import ApiServer, Request
from finetune_operator.cli.kinds import CLUSTER_WIDE, KINDS, PREFIXES, Right
from finetune_operator.cluster import MERGE_PATCH, selector
from finetune_operator.decoding import decode_objects
from finetune_operator.errors import NotFound, NotPossible
from finetune_operator.meta import Object

FIELD_MANAGER = "kubectl-finetune"
WATCH_SECONDS = 600
SILENT_SECONDS = 86400.0  # a watch of one object, or a pod's log, may say nothing for long


class Reach:
    """The API server, and the namespace that is meant. Methods raise the errors of errors.py."""

    def __init__(self, api: ApiServer, namespace: str) -> None:
        self._api = api
        self.namespace = namespace

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()

    async def get(self, kind: str, name: str) -> Object | None:
        """One object, or None where there is none."""
        try:
            return await self._api.json(Request("GET", KINDS[kind].path(self._space(kind), name)))
        except NotFound:
            return None

    async def list(self, kind: str, labels: dict[str, str] | None = None, namespace: str | None = None) -> list[Object]:
        """The objects of a kind with these labels; of all namespaces where `namespace` is empty. None of a kind that is not
        served."""
        query = {"labelSelector": selector(labels)} if labels else {}
        where = self._space(kind) if namespace is None else namespace
        try:
            found: list[Object] = (await self._api.json(Request("GET", KINDS[kind].path(where), query)))["items"] or []
        except NotFound:
            return []
        return [{"kind": kind, **item} for item in found]

    async def follow(self, kind: str, name: str) -> AsyncIterator[Object]:
        """An object as it is now, then each time that it changes, until it is deleted."""
        query = {"watch": "true", "fieldSelector": f"metadata.name={name}", "timeoutSeconds": str(WATCH_SECONDS)}
        request = Request("GET", KINDS[kind].path(self.namespace), query, timeout=SILENT_SECONDS)
        while await self.get(kind, name) is not None:
            async for line in self._api.lines(request):
                event = decode_objects(line)
                if event["type"] in ("ADDED", "MODIFIED"):
                    yield event["object"]
                elif event["type"] == "DELETED":
                    return

    async def change(self, body: Object, patch: Object) -> Object:
        """A merge patch of just this object: one of its name by another uid is a Conflict."""
        metadata = body["metadata"]
        patched = {**patch, "metadata": {**patch.get("metadata", {}), "uid": metadata["uid"]}}
        path = KINDS[body["kind"]].path(metadata["namespace"], metadata["name"])
        query = {"fieldManager": FIELD_MANAGER}
        return await self._api.json(Request("PATCH", path, query, patched, content_type=MERGE_PATCH))

    async def delete(self, body: Object) -> None:
        """Delete just this object, and what it owns."""
        metadata = body["metadata"]
        options = {"preconditions": {"uid": metadata["uid"]}, "propagationPolicy": "Background"}
        await self._api.json(Request("DELETE", KINDS[body["kind"]].path(metadata["namespace"], metadata["name"]), body=options))

    async def log(self, pod: str, container: str, *, follow: bool = False, tail: int | None = None) -> AsyncIterator[str]:
        """The lines that a pod's container has printed, and with `follow` those to come."""
        query = {"container": container, "follow": str(follow).lower()} | ({} if tail is None else {"tailLines": str(tail)})
        path = KINDS["Pod"].path(self.namespace, pod, "log")
        async for line in self._api.lines(Request("GET", path, query, timeout=SILENT_SECONDS)):
            yield line.decode(errors="replace")

    async def may(self, right: Right, user: str | None = None) -> bool:
        """Whether whoever asks, or this user, has this right in the namespace."""
        kind = KINDS[right.kind]
        group = kind.api_version.rpartition("/")[0]
        wanted = {"verb": right.verb, "group": group, "resource": kind.plural, "subresource": right.subresource}
        spec = {"resourceAttributes": {**wanted, "namespace": self._space(right.kind)}} | ({"user": user} if user else {})
        review = "SubjectAccessReview" if user else "SelfSubjectAccessReview"
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": review, "spec": spec}
        path = f"/apis/authorization.k8s.io/v1/{review.lower()}s"
        return bool((await self._api.json(Request("POST", path, body=body)))["status"]["allowed"])

    async def resources(self, api_version: str) -> frozenset[str]:
        """Plural names of what the API server serves of a group's version; none where it is not there."""
        return await self._api.resources(api_version)

    def _space(self, kind: str) -> str:
        return "" if kind in CLUSTER_WIDE else self.namespace


async def connect(context: str | None, namespace: str | None) -> Reach:
    """Reach the cluster of a context, or of the current one; its namespace counts where none is named. Raises NotPossible."""
    from kubernetes.aio.config import ConfigException

    try:
        api = await ApiServer.connect(context)
        return Reach(api, namespace or _namespace_of(context))
    except (ConfigException, OSError) as error:
        raise NotPossible(f"no cluster can be reached: {error}; set KUBECONFIG or --context") from None


def _namespace_of(context: str | None) -> str:
    from kubernetes.aio.config import ConfigException, list_kube_config_contexts

    try:
        contexts, current = list_kube_config_contexts()
    except ConfigException:  # in a pod there is none
        return "default"
    chosen = next((c for c in contexts if c["name"] == context), current)
    return str((chosen or {}).get("context", {}).get("namespace") or "default")


async def named(reach: Reach, text: str, *kinds: str) -> Object:
    """The object that NAME means, or ftj/NAME or mserve/NAME: of several kinds the first that has it. Raises NotPossible."""
    prefix, _, name = text.rpartition("/")
    wanted = [kind for kind in kinds or PREFIXES if not prefix or prefix.lower() in PREFIXES[kind]]
    if not wanted:
        raise NotPossible(
            f"{text}: this command takes {' or '.join(f'{PREFIXES[kind][0]}/NAME' for kind in kinds or PREFIXES)}"
        )
    for kind in wanted:
        if (body := await reach.get(kind, name)) is not None:
            return {**body, "kind": kind}
    raise NotPossible(f"no {' or '.join(wanted)} {name} is in the namespace {reach.namespace}; -n names another")


async def served(reach: Reach, text: str) -> Object:
    """The ModelServe that a name means: its own, or the one that a FineTuneJob handed over to. Raises NotPossible."""
    body = await named(reach, text, "ModelServe", "FineTuneJob")
    if body["kind"] == "ModelServe":
        return body
    serving = ((body.get("status") or {}).get("serving") or {}).get("name")
    if serving is None:
        raise NotPossible(f"the job {body['metadata']['name']} serves nothing; spec.serving would")
    return await named(reach, serving, "ModelServe")


async def api_key(reach: Reach, serve: Object) -> str | None:
    """The key that requests must bring; None where none is asked for. Raises NotPossible where it is not there."""
    ref = ((serve["spec"].get("auth")) or {}).get("secretRef")
    if ref is None:
        return None
    secret, key = await reach.get("Secret", ref["name"]), ref.get("key", "api-key")
    if secret is None or key not in (secret.get("data") or {}):
        raise NotPossible(f"spec.auth.secretRef: there is no Secret {ref['name']} with the key {key}")
    return base64.b64decode(secret["data"][key]).decode()
