"""What is the loss of another rank, and what only looks like it."""

import pytest
import torch.distributed as dist

from topklm.errors import CheckpointError, ConfigError, NonFiniteError, PeerError
from topklm.train.peers import lost_peer, naming_lost_peers

CLOSED = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:41012"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError(CLOSED), "Connection closed by peer [127.0.0.1]:41012"),
        (RuntimeError("[a.cc:78] Timed out waiting 6000ms for recv operation to complete"), "Timed out waiting 6000ms"),
        (dist.DistBackendError("NCCL error ...: remote process exited or there was a network error"), "remote process"),
        (dist.DistStoreError("Timed out after 61 seconds waiting for clients. 1/2 clients joined."), "1/2 clients"),
        (dist.DistNetworkError("The client socket has timed out"), "client socket"),
        (dist.DistBackendError("NCCL error in ...: unhandled cuda error (run with NCCL_DEBUG=INFO)"), None),
        (RuntimeError("CUDA out of memory"), None),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (BrokenPipeError(32, "Broken pipe"), None),
        (ValueError(CLOSED), None),
    ],
)
def test_it_is_known_by_what_torch_says(error, told):
    found = lost_peer(error)
    assert (found is None) == (told is None)
    assert told is None or told in found


def caused(outer, inner):
    try:
        try:
            raise inner
        except Exception as error:
            raise outer from error
    except Exception as error:
        return error


def test_errors_that_follow_from_it_are_it_but_not_those_that_led_to_it():
    assert lost_peer(caused(CheckpointError("saving in the background failed"), RuntimeError(CLOSED)))
    # This rank failed first; that the others have left meanwhile is no news.
    assert lost_peer(caused(RuntimeError(CLOSED), NonFiniteError("the loss is nan"))) is None
    assert lost_peer(caused(CheckpointError("x"), OSError("y"))) is None


def lose_a_peer(checkpoints):
    with naming_lost_peers(checkpoints, 2):
        raise RuntimeError(CLOSED)


def test_the_message_says_how_to_go_on(tmp_path):
    with pytest.raises(PeerError, match="the same command begins again, nothing was saved") as told:
        lose_a_peer(tmp_path)
    assert "(Connection closed by peer [127.0.0.1]:41012): its own log says why" in str(told.value)
    (tmp_path / "0000000120").mkdir()
    with pytest.raises(PeerError, match="the same command resumes from step 120"):
        lose_a_peer(tmp_path)


def test_other_errors_and_single_processes_stay_as_they_are(tmp_path):
    with pytest.raises(ConfigError), naming_lost_peers(tmp_path, 2):
        raise ConfigError("x")
    with pytest.raises(RuntimeError, match="Connection closed"), naming_lost_peers(tmp_path, 1):
        raise RuntimeError(CLOSED)
