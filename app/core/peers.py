"""Which addresses a request of ours may go to when somebody else has chosen where it goes."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_network

_PRIVATE = [
    ip_network(text)
    for text in (
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8"),
        *("fc00::/7", "::1/128"),
    )
]
"""What an operator may allow."""

_PLATFORMS = [
    ip_network(text)
    for text in (
        *("169.254.0.0/16", "fe80::/10"),  # link-local
        *("168.63.129.16/32", "100.100.100.200/32"),  # Azure and Alibaba, public and shared by their numbers
        *("fd00:ec2::/32", "fd20:ce::/32"),  # AWS and Google, private by theirs
    )
]
"""Where clouds keep their machines' credentials, and which nobody can allow."""

# By IANA's registries of special-purpose addresses. `ipaddress.is_global` knows them too, but another list in each
# patch release of Python, and not the last one of IPv4's.
_NOT_PUBLIC = [
    ip_network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15"),
        *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3"),
        *("::/3", "4000::/2", "8000::/1"),  # all but 2000::/3: loopback, mapped, local, multicast, unassigned
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),  # protocols (Teredo), documentation, 6to4
    )
]
_NAT64 = ip_network("64:ff9b::/96")


def may_connect(text: str, *, allow_private: bool) -> bool:
    """Whether this is a public address, or a private one where those are allowed. Those where
    clouds keep their machines' credentials never are; nor is what is no address at all."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if address in _NAT64:  # all that a network without IPv4 has for an IPv4 host, which is the one that answers
        address = IPv4Address(int(address) & 0xFFFF_FFFF)
    if any(address in network for network in _PLATFORMS):
        return False
    if any(address in network for network in _PRIVATE):
        return allow_private
    return not any(address in network for network in _NOT_PUBLIC)
