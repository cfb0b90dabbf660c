"""Following the text logs of the data plane."""

from flows.serving_commands import _written_since


def test_a_log_that_is_moved_away_is_followed_again_once_it_is_there(tmp_path):
    log = tmp_path / "access.log"
    log.write_text("one\n")
    seen = {log: 0}
    assert _written_since(log, seen) == ["one"]

    log.rename(tmp_path / "access.log.1")
    while_away = _written_since(log, seen)
    log.write_text("2\n")

    assert while_away == []
    assert _written_since(log, seen) == ["2"]
