"""A LocalQueue of Kueue by name, whichever release of Kueue the cluster has, if any."""

from __future__ import annotations

from finetune_operator.apiserver import ApiServer, Request
from finetune_operator.errors import Forbidden, NotFound
from finetune_operator.kueue import KUEUE, NOT_SERVED, UNTOLD
from finetune_operator.meta import Object
from finetune_operator.resources import Resource


async def local_queue(api: ApiServer, namespace: str, name: str) -> Object | None:
    """In the version that this Kueue prefers: releases of it serve different ones. None where there is no queue of that
    name, NOT_SERVED where there is no Kueue.
    """
    try:
        group = await api.json(Request("GET", f"/apis/{KUEUE}"))
    except NotFound:
        return NOT_SERVED
    except Forbidden:
        return UNTOLD
    queues = Resource(group["preferredVersion"]["groupVersion"], "localqueues")
    try:
        return await api.json(Request("GET", queues.path(namespace, name)))
    except NotFound:
        return None
    except Forbidden:  # the roles are older than the operator
        return UNTOLD
