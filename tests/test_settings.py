"""Settings: which source wins, and what is refused with the name of the setting."""

import pytest

from engram_bus.settings import LOG_SIZE_GIB_MAX, Settings, SettingsError, load


def test_flags_win_over_the_environment_and_that_over_the_file() -> None:
    file = "port: 1\nhost: 127.0.0.2\nlog_level: debug\n"
    settings = load(flags={"port": 3}, environment={"ENGRAM_PORT": "2", "ENGRAM_HOST": "127.0.0.3"}, file=file)
    assert (settings.port, settings.host, settings.log_level) == (3, "127.0.0.3", "debug")


def test_without_a_source_they_are_the_defaults() -> None:
    assert load(flags={"port": None}, environment={"HOME": "/", "ENGRAM_URL": "x"}) == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "65536"),
        ("port", "http"),
        ("log_level", "loud"),
        ("heartbeat_seconds", "0"),
        ("stall_seconds", "nan"),
        ("log_size_gib", "0"),
        ("log_size_gib", str(LOG_SIZE_GIB_MAX + 1)),
        ("data_dir", ""),
        ("host", "0.0.0.0"),
        ("host", "example.org"),
    ],
)
def test_what_is_not_allowed_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        load(flags={}, environment={f"ENGRAM_{name.upper()}": value})


def test_an_address_that_others_reach_has_to_be_asked_for() -> None:
    flags = {"host": "0.0.0.0", "allow_unauthenticated": True}
    assert load(flags=flags, environment={}).host == "0.0.0.0"


@pytest.mark.parametrize("file", ["prt: 1", "- port", "port: [", "1: 2"])
def test_a_file_that_cannot_be_meant_is_refused(file: str) -> None:
    with pytest.raises(SettingsError, match=r"my\.yaml"):
        load(flags={}, environment={}, file=file, file_name="my.yaml")
