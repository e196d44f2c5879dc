"""How an address is written."""

from engram_bus.ports import address_of


def test_an_ipv6_host_is_in_brackets() -> None:
    assert (address_of("::1", 80), address_of("127.0.0.1", 80)) == ("[::1]:80", "127.0.0.1:80")
