"""Guest pages over time: counts of a trace's faults."""

from __future__ import annotations

from typing import Final

import polars as pl

TIME_BINS: Final = 60
PAGE_BINS: Final = 36
MOST_CAUSES: Final = 4


def heat(
    faults: pl.DataFrame, begin_ns: int, *, time_bins: int = TIME_BINS, page_bins: int = PAGE_BINS
) -> pl.DataFrame:
    """Faults by page and time, for each of the causes with the most faults.

    Pages are counted in order of address, gaps left out. Columns: `cause`, `from_ns` and `until_ns` (from
    `begin_ns`), `first` and `beyond` (rank of the pages), `address` (of the first of them), `faults`, `stall_ns`
    (of those whose end was seen). Faults whose page is not known are left out. The cause with most faults comes first;
    ranks and spans are the same for all.
    """
    known = faults.filter(faults["granule"] > 0).select("cause", "start_ns", "page", "stall_ns")
    schema = {"cause": pl.String, "from_ns": pl.Int64, "until_ns": pl.Int64, "first": pl.Int64, "beyond": pl.Int64}
    schema |= {"address": pl.UInt64, "faults": pl.Int64, "stall_ns": pl.Int64}
    if not len(known):
        return pl.DataFrame(schema=schema)
    common = (
        known["cause"]
        .value_counts()
        .sort(["count", "cause"], descending=[True, False])["cause"][:MOST_CAUSES]
        .to_list()
    )
    known = known.filter(pl.col("cause").is_in(common))
    span_ns = int(known["start_ns"].max()) - begin_ns + 1  # type: ignore[arg-type]
    step_ns = max(-(-span_ns // time_bins), 1)
    ranks = known.select(pl.col("page").unique().sort()).with_row_index("rank")
    step = max(-(-len(ranks) // page_bins), 1)
    firsts = ranks.filter(pl.col("rank") % step == 0).select(pl.col("rank") // step, pl.col("page").alias("address"))
    at = (pl.col("start_ns") - begin_ns).clip(0) // step_ns
    counted = (
        known.join(ranks, on="page")
        .group_by("cause", (pl.col("rank") // step), at.alias("bin"))
        .agg(pl.len().cast(pl.Int64).alias("faults"), pl.col("stall_ns").sum())
        .join(firsts, on="rank")
    )
    first = pl.col("rank").cast(pl.Int64) * step
    return counted.select(
        "cause",
        (pl.col("bin") * step_ns).alias("from_ns"),
        ((pl.col("bin") + 1) * step_ns).alias("until_ns"),
        first.alias("first"),
        (first + step).clip(upper_bound=len(ranks)).alias("beyond"),
        pl.col("address").cast(pl.UInt64),
        "faults",
        pl.col("stall_ns").cast(pl.Int64),
    ).sort(pl.col("cause").replace_strict({c: n for n, c in enumerate(common)}), "from_ns", "first")
