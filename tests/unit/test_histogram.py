"""The histogram behind the metrics of the disk."""

from raftkv.histogram import Histogram


def test_buckets_double_and_an_observation_counts_in_the_first_that_holds_it() -> None:
    histogram = Histogram()
    assert histogram.bounds[:3] == (0.001, 0.002, 0.004)
    assert histogram.bounds[-1] == 8.192
    for seconds in (0.0, 0.001, 0.0011, 9.0):
        histogram.observe(seconds)
    assert histogram.counts == [2, 1, *[0] * 12, 1]
    assert histogram.total == 9.0021
