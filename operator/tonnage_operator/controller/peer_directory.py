"""Which nodes have a ready peer, and which are loading an entry: what the answers about peers are made from."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from tonnage.contract.peers import MAX_PEERS, NO_PLACE
from tonnage_operator.api import names
from tonnage_operator.domain.peers.choice import NodeRing, choose_peers, find_holders
from tonnage_operator.domain.peers.headers import HeaderReaders
from tonnage_operator.domain.peers.loading import LoadingNodes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from tonnage_operator.api.nodecache import EntryKey
    from tonnage_operator.domain.observed.pod import Pod


class PeerDirectory:
    """The peers of all nodes.

    Only pods in the operator's namespace count. A node whose peer isn't ready is left out, whatever it has.
    """

    def __init__(self, namespace: str, *, on_host: bool = False, port: int = 0) -> None:
        self._namespace = namespace
        self._on_host = on_host
        self._port = port
        self._pods: dict[str, dict[str, str]] = defaultdict(dict)
        """Addresses of ready peers by the pod's uid, by node. A node has two while the DaemonSet is updated."""
        self.ring = NodeRing()
        self._loading: dict[EntryKey, LoadingNodes] = {}
        self._readers: dict[EntryKey, dict[str, HeaderReaders]] = {}
        """By the object's uid: what a Job of one object reports is not believed of another one."""

    def pod_changed(self, before: Pod | None, after: Pod | None) -> None:
        """Notes a change of a pod; an event handler of the pods' store."""
        for pod in (before, after):
            if pod and pod.role == names.ROLE_PEER and pod.namespace == self._namespace and pod.node:
                self._set(pod, self._address(after) if after and after.node == pod.node else "")

    def _address(self, pod: Pod) -> str:
        address = pod.host_ip if self._on_host else pod.ip
        if not pod.ready or pod.deleting or not address:
            return ""
        return f"[{address}]:{self._port}" if ":" in address else f"{address}:{self._port}"

    def _set(self, pod: Pod, address: str) -> None:
        known = self._pods[pod.node]
        if address:
            known[pod.uid] = address
            self.ring.add(pod.node)
            return
        known.pop(pod.uid, None)
        if not known:
            del self._pods[pod.node]
            self.ring.remove(pod.node)

    def address(self, node: str) -> str:
        """Returns host and port of a node's peer; empty without a ready one."""
        known = self._pods.get(node)
        return max(known.items())[1] if known else ""

    def note_asking(self, key: EntryKey, node: str, now: float) -> None:
        """Notes that a loader on a node has asked for the peers of an entry. ``now`` is monotonic, in seconds."""
        self._loading.setdefault(key, LoadingNodes()).note(node, now, serves=node in self.ring)

    def asking(self, key: EntryKey, now: float) -> Collection[str]:
        """Returns the nodes whose loaders have lately asked for the peers of an entry."""
        loading = self._loading.get(key)
        nodes = loading.nodes(now) if loading else ()
        if not nodes:
            self._loading.pop(key, None)
            self._readers.pop(key, None)
        return nodes

    def headers(
        self, key: EntryKey, model_uid: str, node: str, now: float, *, believed: bool, digest: str
    ) -> tuple[str, str]:
        """Returns the digest of an entry's headers that a load of an object has reported, and what a load does.

        Args:
            key: The entry.
            model_uid: The object.
            node: The node of the load that asks.
            now: Monotonic, in seconds.
            believed: Whether it is a Job of the object, whose digest counts.
            digest: The digest that it reports; empty: none.
        """
        readers = self._readers.setdefault(key, {}).setdefault(model_uid, HeaderReaders())
        if believed:
            readers.note(node, digest)
        may_read = believed and node in self.ring
        return readers.digest, readers.task(node, now, may_read=may_read, loading=self.asking(key, now))

    def share(self, key: EntryKey, node: str) -> tuple[int, int]:
        """Returns how many loading nodes can serve an entry, and the place of one among them; -1 if it has none."""
        loading = self._loading.get(key)
        if loading is None:
            return 0, NO_PLACE
        place = loading.place(node)
        return loading.places, NO_PLACE if place is None else place

    def choose(
        self,
        key: EntryKey,
        asker: str,
        *,
        recorded: Collection[str],
        is_complete: Callable[[str], bool],
        is_near: Callable[[str], bool],
        now: float,
    ) -> list[tuple[str, str]]:
        """Returns names and addresses of the peers that one loader may ask; see ``choice``."""
        holders = find_holders(
            asker, self.ring, recorded=recorded, loading=self.asking(key, now), is_complete=is_complete
        )
        chosen = choose_peers(asker, holders, MAX_PEERS, is_near=is_near)
        return [(node, self.address(node)) for node in chosen]
