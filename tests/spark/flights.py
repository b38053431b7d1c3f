"""The job of examples/flights/pipeline.rs, written for Spark."""

from pyspark.sql import DataFrame, SparkSession

FLIGHTS = """time_hour TIMESTAMP, carrier STRING, flight INT, tailnum STRING, origin STRING, dest STRING,
             dep_delay INT, arr_delay INT, air_time INT, distance INT"""
AIRLINES = "carrier STRING, name STRING"
BAND = """CASE WHEN dep_delay < 15 THEN 'on time' WHEN dep_delay < 60 THEN 'slight'
               WHEN dep_delay < 180 THEN 'moderate' ELSE 'severe' END AS band"""


def pipeline(flights: DataFrame, airlines: DataFrame) -> DataFrame:
    return (
        flights.where("dep_delay IS NOT NULL")
        .join(airlines.withColumnRenamed("name", "airline"), "carrier", "left")
        .selectExpr("time_hour", "carrier", "airline", "flight", "tailnum", "origin", "dest",
                    "dep_delay", "arr_delay", "distance", BAND)
    )


def continue_stream(spark: SparkSession, source: str, airlines: str, output: str, checkpoint: str) -> list[dict]:
    """Takes what is there, a file per batch, from where the checkpoint stands. Returns the progress of each batch."""
    flights = (spark.readStream.schema(FLIGHTS).option("header", "true").option("maxFilesPerTrigger", 1).csv(source))
    names = spark.read.schema(AIRLINES).option("header", "true").csv(airlines)
    query = (
        pipeline(flights, names)
        .writeStream.outputMode("append").format("parquet").partitionBy("origin")
        .option("path", output).option("checkpointLocation", checkpoint)
        .trigger(availableNow=True).start()
    )
    query.awaitTermination()
    return [progress for progress in query.recentProgress]
