"""Which loads read the headers of an entry for all others, and whose digest counts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tonnage.contract.peers import AWAIT_HEADERS, READ_HEADERS
from tonnage_operator.api.modelweights import Medium
from tonnage_operator.api.nodecache import EntryKey
from tonnage_operator.controller.peer_directory import PeerDirectory
from tonnage_operator.domain.peers.headers import MAX_READERS, READERS, READING_SECONDS, HeaderReaders

NODES = [f"node-{number}" for number in range(9)]
DIGEST = "d" * 64


@given(
    st.lists(
        st.tuples(
            st.sampled_from(NODES),
            st.booleans(),
            st.sets(st.sampled_from(NODES)),
            st.sampled_from(["", "", DIGEST, "e" * 64]),
            st.floats(0, 2 * READING_SECONDS),
        ),
        max_size=40,
    )
)
def test_few_loads_read_and_the_others_wait_only_while_one_reads_or_a_digest_is_known(
    questions: list[tuple[str, bool, set[str], str, float]],
) -> None:
    readers, readers_seen, now, known = HeaderReaders(), set[str](), 0.0, ""
    for node, may_read, others, digest, later in questions:
        now += later
        if may_read:
            readers.note(node, digest)
            if node in readers_seen and not known:
                known = digest
        assert readers.digest == known, "the first digest counts, and only of a load that was chosen to read"
        loading = {*others, node}
        task = readers.task(node, now, may_read=may_read, loading=loading)
        if task == READ_HEADERS:
            assert may_read or node in readers_seen
            readers_seen.add(node)
        elif task == "":
            assert not known
        else:
            assert task == AWAIT_HEADERS
            assert known or readers_seen & loading
    assert len(readers_seen) <= MAX_READERS


def test_a_load_that_reads_is_followed_by_another_one_when_it_ends_or_takes_too_long() -> None:
    readers, loading = HeaderReaders(), set(NODES)
    tasks = [readers.task(node, 0.0, may_read=True, loading=loading) for node in NODES]
    assert tasks == [READ_HEADERS] * READERS + [AWAIT_HEADERS] * (len(NODES) - READERS)
    assert readers.task(NODES[0], 1.0, may_read=True, loading=loading) == READ_HEADERS, "still"
    left = loading - {NODES[0]}
    assert readers.task(NODES[5], 2.0, may_read=True, loading=left) == READ_HEADERS
    assert readers.task(NODES[6], 3.0 + READING_SECONDS, may_read=True, loading=left) == READ_HEADERS
    assert readers.task(NODES[1], 3.0 + READING_SECONDS, may_read=True, loading=left) != READ_HEADERS, "it had its time"


def test_pods_that_are_not_believed_read_for_themselves_unless_a_believed_one_reads() -> None:
    readers = HeaderReaders()
    assert readers.task("node-a", 0.0, may_read=False, loading=NODES) == ""
    readers.note("node-a", DIGEST)
    assert readers.digest == ""
    assert readers.task("node-1", 0.0, may_read=True, loading=NODES) == READ_HEADERS
    assert readers.task("node-a", 0.0, may_read=False, loading=NODES) == AWAIT_HEADERS


def test_a_digest_counts_for_the_object_whose_job_has_reported_it_and_for_no_other_one() -> None:
    directory, key = PeerDirectory("tonnage-system"), EntryKey("r-" + "0" * 32, Medium.MEMORY)
    directory.ring.add("node-a")
    directory.note_asking(key, "node-a", 0.0)

    def ask(uid: str, *, believed: bool, digest: str = "") -> tuple[str, str]:
        return directory.headers(key, uid, "node-a", 1.0, believed=believed, digest=digest)

    assert ask("one", believed=False, digest=DIGEST) == ("", "")
    assert ask("one", believed=True) == ("", READ_HEADERS)
    assert ask("one", believed=False, digest=DIGEST) == ("", READ_HEADERS), "a pod of others on that node"
    assert ask("one", believed=True, digest=DIGEST)[0] == DIGEST
    assert ask("two", believed=False) == ("", "")
