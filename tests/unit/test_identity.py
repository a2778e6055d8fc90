"""Ids equal to etcd's: the vectors are what etcd prints for these flags."""

import pytest

from raftkv.server.identity import cluster_id, member_id


def test_the_default_member_has_etcds_well_known_ids() -> None:
    member = member_id(["http://localhost:2380"], "etcd-cluster")
    assert f"{member:x}" == "8e9e05c52164694d"
    assert f"{cluster_id([member]):x}" == "cdf818194e3a8c32"


def test_the_order_of_urls_and_members_does_not_matter() -> None:
    urls = ["http://10.0.0.1:2380", "http://10.0.0.2:2380"]
    assert member_id(urls, "t") == member_id(reversed(urls), "t")
    ids = [member_id([url], "t") for url in urls]
    assert cluster_id(ids) == cluster_id(reversed(ids))


@pytest.mark.parametrize("other", [(["http://localhost:2381"], "t"), (["http://localhost:2380"], "u")])
def test_urls_and_token_are_both_part_of_the_id(other: tuple[list[str], str]) -> None:
    assert member_id(["http://localhost:2380"], "t") != member_id(*other)
