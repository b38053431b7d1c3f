"""Real Spark reads and continues what Tidewater wrote. `run.sh` calls this; the argument is a scratch directory.

Every comparison is of multisets of rows: no row lost, none doubled, none changed.
"""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession

import flights

REPO = Path(__file__).resolve().parents[2]
DAYS = sorted((REPO / "examples/data/flights").glob("*.csv"))
AIRLINES = REPO / "examples/data/airlines.csv"
FIXTURES = REPO / "checkpoint-fixtures/spark"


def main(work: Path) -> None:
    spark = session(work)
    try:
        batch_answer = spark_reads_our_output(spark, work)
        spark_continues_our_query(spark, work, batch_answer)
        spark_reads_the_fixtures_we_continued(spark, work)
    finally:
        spark.stop()


def spark_reads_our_output(spark: SparkSession, work: Path) -> Counter:
    """The stream's directory, read through its manifest, holds the rows of the batch job. Returns those."""
    output = work / "whole/delays"
    ours(input=REPO / "examples/data/flights", output=output, checkpoint=work / "whole/checkpoint")
    ours(input=REPO / "examples/data/flights", output=output, batch=True)

    # A file that a failed batch might have left: no manifest names it.
    committed = next(output.glob("origin=*/*.parquet"))
    shutil.copyfile(committed, committed.with_name("part-00000-left-by-a-failed-batch.parquet"))

    stream, batch = rows(spark.read.parquet(str(output))), rows(spark.read.parquet(f"{output}-batch"))
    same("Spark reads the stream's directory", stream, batch)

    spark_says = flights.pipeline(
        spark.read.schema(flights.FLIGHTS).option("header", "true").csv(str(REPO / "examples/data/flights")),
        spark.read.schema(flights.AIRLINES).option("header", "true").csv(str(AIRLINES)),
    )
    same("Spark's own batch job", rows(spark_says), batch)
    return batch


def spark_continues_our_query(spark: SparkSession, work: Path, batch_answer: Counter) -> None:
    """Twenty days by us, eleven by Spark from our checkpoint, then one more file by us from Spark's."""
    source, output, checkpoint = work / "shared/in", work / "shared/delays", work / "shared/checkpoint"
    source.mkdir(parents=True)
    for day in DAYS[:20]:
        shutil.copy(day, source)
    ours(input=source, output=output, checkpoint=checkpoint)
    batches = numbered(checkpoint / "commits")
    assert batches == list(range(20)), f"we were to commit batches 0 to 19, and did {batches}"

    for day in DAYS[20:]:
        shutil.copy(day, source)
    progress = flights.continue_stream(spark, str(source), str(AIRLINES), str(output), str(checkpoint))
    taken = [p["batchId"] for p in progress if p["numInputRows"] > 0]
    assert taken == list(range(20, 31)), f"Spark was to run batches 20 to 30, and ran {taken}"
    same("Spark continues our query", rows(spark.read.parquet(str(output))), batch_answer)

    header, first_flight = DAYS[0].read_text().splitlines()[:2]
    (source / "2013-02-01.csv").write_text(f"{header}\n{first_flight}\n")
    ours(input=source, output=output, checkpoint=checkpoint)
    added = rows(spark.read.parquet(str(output))) - batch_answer
    assert added.total() == 1, f"we were to add the one row of the new file to Spark's, and added {added.total()}"
    assert numbered(checkpoint / "commits")[-1] == 31
    print("ok: we continue the query that Spark continued: one new file, one new row")


def spark_reads_the_fixtures_we_continued(spark: SparkSession, work: Path) -> None:
    """The integration test `spark_fixtures` continued them and left their directories in `fixtures/<name>/sink`."""
    for fixture in sorted(path.parent for path in FIXTURES.glob("*/expected.json")):
        expected = json.loads((fixture / "expected.json").read_text())
        wanted = Counter(tuple(row) for row in expected["rows_final"])
        found = rows(spark.read.parquet(str(work / "fixtures" / fixture.name / "sink")))
        same(f"fixture {fixture.name}", found, wanted)


def ours(batch: bool = False, **places: Path) -> None:
    """Runs our example to its end."""
    flags = [word for name, path in places.items() for word in (f"--{name}", str(path))]
    command = ["cargo", "run", "--quiet", "--release", "--example", "flights", "--", *flags]
    done = subprocess.run(command + ["--batch"] * batch, cwd=REPO, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}"


def rows(df: DataFrame) -> Counter:
    """The rows, columns in order of name, times as ISO text with microseconds."""
    columns = [
        f"date_format(`{name}`, \"yyyy-MM-dd'T'HH:mm:ss.SSSSSS'Z'\") AS `{name}`" if kind == "timestamp" else f"`{name}`"
        for name, kind in sorted(df.dtypes)
    ]
    return Counter(tuple(row) for row in df.selectExpr(*columns).collect())


def same(what: str, found: Counter, wanted: Counter) -> None:
    missing, surplus = wanted - found, found - wanted
    assert not missing and not surplus, (
        f"{what}: {found.total()} rows, {wanted.total()} wanted; {missing.total()} missing, such as "
        f"{list(missing)[:3]}; {surplus.total()} too many, such as {list(surplus)[:3]}"
    )
    print(f"ok: {what}: {found.total()} rows, the same", flush=True)


def numbered(log: Path) -> list[int]:
    return sorted(int(entry.name) for entry in log.iterdir() if entry.name.isdigit())


def session(work: Path) -> SparkSession:
    spark = (
        SparkSession.builder.master("local[2]").appName("tidewater-interop")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.log.level", "ERROR")
        .config("spark.local.dir", str(work / "spark"))
        .config("spark.sql.warehouse.dir", str(work / "warehouse"))
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.shuffle.partitions", "2")
        .getOrCreate()
    )
    return spark


if __name__ == "__main__":
    main(Path(sys.argv[1]))
