"""What `cargo bench --bench bench -- state` measures, in Spark 4.3: count and sum by key in update mode, many keys in
state, batches of ten thousand rows whose keys lie anywhere among them. RocksDB with changelog, as Spark does it best.

    ~/.cache/tidewater/spark-venv/bin/python tests/spark/state_bench.py --keys 10000 1000000 10000000

`run.sh` makes that environment. Java 17 or newer. Input is Parquet, a file per batch, made by Spark before the clock
runs; the checkpoint is written without a process per file (`FileSystemBasedCheckpointFileManager`), and like ours not
flushed.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession, functions as F

STREAMING = "spark.sql.streaming"
ROCKSDB = "org.apache.spark.sql.execution.streaming.state.RocksDBStateStoreProvider"
WITHOUT_FORKS = "org.apache.spark.sql.execution.streaming.checkpointing.FileSystemBasedCheckpointFileManager"

ROWS = 10_000
FILLING_ROWS = 250_000
WARM_UP = 20


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--keys", type=int, nargs="+", default=[10_000, 1_000_000, 10_000_000])
    arguments.add_argument("--batches", type=int, default=200, help="batches that are measured")
    arguments.add_argument("--cores", type=int, default=os.cpu_count())
    arguments.add_argument("--memory", default="6g")
    arguments.add_argument("--work", type=Path, help="where input and checkpoints go [default: a temporary folder]")
    arguments.add_argument("--restart", nargs=2, metavar=("KEYS", "BATCH"), help=argparse.SUPPRESS)
    options = arguments.parse_args()

    if options.restart:
        restart(options)
        return
    work = options.work or Path(tempfile.mkdtemp())
    spark = session(options, work)
    try:
        for keys in options.keys:
            print(json.dumps(measure(spark, work, keys, options.batches)), flush=True)
    finally:
        spark.stop()
    if 1_000_000 in options.keys:
        # In a process of its own, because the start of the process counts.
        batch = newest(work / "checkpoint-1000000")
        command = [sys.executable, __file__, "--work", str(work), "--cores", str(options.cores)]
        command += ["--memory", options.memory, "--restart", "1000000", str(batch + 1)]
        started = time.time()
        subprocess.run(command, check=True, env={**os.environ, "STARTED": str(started)})
    if not options.work:
        shutil.rmtree(work)


def session(options: argparse.Namespace, work: Path) -> SparkSession:
    settings = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.memory": options.memory,
        "spark.local.dir": str(work / "local"),
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": str(options.cores),
        f"{STREAMING}.checkpointFileManagerClass": WITHOUT_FORKS,
        f"{STREAMING}.numRecentProgressUpdates": "100000",
        f"{STREAMING}.stateStore.providerClass": ROCKSDB,
        f"{STREAMING}.stateStore.rocksdb.changelogCheckpointing.enabled": "true",
    }
    builder = SparkSession.builder.master(f"local[{options.cores}]")
    for name, value in settings.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    return spark


def put(rows: DataFrame, source: Path, number: int) -> None:
    """One file of the source, older than the next."""
    made = source.with_name(source.name + "-making")
    rows.coalesce(1).write.mode("overwrite").parquet(str(made))
    target = source / f"{number:06d}.parquet"
    next(made.glob("*.parquet")).rename(target)
    shutil.rmtree(made)
    os.utime(target, (1_700_000_000 + number, 1_700_000_000 + number))


def key(number: object) -> object:
    """A key that looks like a hash, as in our bench."""
    return F.xxhash64(number).alias("key")


def start(spark: SparkSession, work: Path, keys: int, sink: str = "noop"):
    source = spark.readStream.schema("key bigint, v bigint").option("maxFilesPerTrigger", 1)
    rows = source.parquet(str(work / f"in-{keys}"))
    counts = rows.groupBy("key").agg(F.count("*").alias("n"), F.sum("v").alias("total"))
    writer = counts.writeStream.format(sink).outputMode("update")
    return writer.option("checkpointLocation", str(work / f"checkpoint-{keys}")).trigger(availableNow=True).start()


def measure(spark: SparkSession, work: Path, keys: int, batches: int) -> dict:
    source, checkpoint = work / f"in-{keys}", work / f"checkpoint-{keys}"
    for folder in (source, checkpoint):
        shutil.rmtree(folder, ignore_errors=True)
    source.mkdir(parents=True)
    filling = math.ceil(keys / FILLING_ROWS)
    for number in range(filling):
        ids = spark.range(number * FILLING_ROWS, min((number + 1) * FILLING_ROWS, keys))
        put(ids.select(key("id"), (F.col("id") % 100).alias("v")), source, number)
    for number in range(filling, filling + WARM_UP + batches):
        ids = spark.range(ROWS).select((F.rand(number) * keys).cast("bigint").alias("id"))
        put(ids.select(key("id"), (F.col("id") % 100).alias("v")), source, number)

    started = time.time()
    query = start(spark, work, keys)
    query.awaitTermination()
    progress = [p for p in query.recentProgress if p["numInputRows"] > 0][filling + WARM_UP :]
    assert len(progress) == batches, f"{len(progress)} batches, {batches} wanted"
    state = progress[-1]["stateOperators"][0]
    assert state["numRowsTotal"] == keys, f"{state['numRowsTotal']} keys in state, {keys} wanted"
    of = lambda phase: sorted(p["durationMs"][phase] for p in progress)
    return {
        "engine": f"Spark {spark.version}, RocksDB with changelog",
        "keys": keys,
        "batch_ms_median": quantile(of("triggerExecution"), 0.5),
        "batch_ms_p99": quantile(of("triggerExecution"), 0.99),
        "add_batch_ms_median": quantile(of("addBatch"), 0.5),
        "state_memory_bytes_per_key": round(state["memoryUsedBytes"] / keys, 1),
        "checkpoint_mib": round(sum(f.stat().st_size for f in checkpoint.rglob("*") if f.is_file()) / 2**20, 1),
        "seconds": round(time.time() - started, 1),
        "load": round(os.getloadavg()[0], 1),
    }


def restart(options: argparse.Namespace) -> None:
    """From the start of this process to the commit of the next batch, which has one row."""
    keys, batch = (int(word) for word in options.restart)
    spark = session(options, options.work)
    source = options.work / f"in-{keys}"
    one = spark.range(1).select(key("id"), F.lit(1).cast("bigint").alias("v"))
    put(one, source, len(list(source.glob("*.parquet"))))
    ready = time.time()
    query = start(spark, options.work, keys)
    commit = options.work / f"checkpoint-{keys}/commits/{batch}"
    while not commit.exists() and query.isActive:
        time.sleep(0.002)
    done = time.time()
    query.awaitTermination()
    took = {
        "engine": f"Spark {spark.version}, RocksDB with changelog",
        "restart_with_keys": keys,
        "process_to_commit_s": round(done - float(os.environ["STARTED"]), 2),
        "start_to_commit_s": round(done - ready, 2),
    }
    print(json.dumps(took), flush=True)
    spark.stop()


def newest(checkpoint: Path) -> int:
    return max(int(entry.name) for entry in (checkpoint / "commits").iterdir() if entry.name.isdigit())


def quantile(ordered: list, share: float) -> float:
    return ordered[round((len(ordered) - 1) * share)]


if __name__ == "__main__":
    main()
