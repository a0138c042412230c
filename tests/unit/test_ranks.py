"""One process alone decides for itself; how ranks decide together is shown by tests/dist."""

import pytest

from topklm.errors import ConfigError
from topklm.ranks import Ranks


def test_alone():
    ranks = Ranks()
    assert ranks.is_first
    assert ranks.first(lambda: [1]) == [1]
    assert ranks.only_first(lambda: [1]) == [1]
    ranks.wait()


@pytest.mark.parametrize("error", [ConfigError("so"), ValueError("otherwise")])
@pytest.mark.parametrize("decide", ["first", "only_first"])
def test_what_fails_is_raised_as_it_is(decide, error):
    def fail():
        raise error

    with pytest.raises(type(error), match=str(error)) as caught:
        getattr(Ranks(), decide)(fail)
    assert caught.value is error
