#!/usr/bin/env bash
# Lets real Spark read and continue what Tidewater wrote. Needs Python 3.10 or newer and Java 17 or newer; where they are
# missing, it says so and skips, except in CI (CI=true), where that is a failure.
set -euo pipefail
cd "$(dirname "$0")/../.."

unavailable() {
    if [ "${CI:-}" = true ]; then
        echo "tests/spark: $1" >&2
        exit 1
    fi
    echo "tests/spark: skipped, because $1"
    exit 0
}

python=$(command -v python3) || unavailable "there is no python3 on the PATH; install Python 3.10 or newer"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
    || unavailable "python3 is $("$python" -V 2>&1 | cut -d' ' -f2), and PySpark needs 3.10 or newer"

java=${JAVA_HOME:+$JAVA_HOME/bin/}java
command -v "$java" >/dev/null || unavailable "there is no Java; install Java 17 or newer, or set JAVA_HOME"
java_version=$("$java" -XshowSettings:properties -version 2>&1 | sed -n 's/.*java.specification.version = //p')
[ "${java_version%%.*}" -ge 17 ] 2>/dev/null || unavailable "Java is ${java_version:-of an unknown version}, and Spark needs 17 or newer"

# One virtual environment for all clones, made anew when the requirements change.
venv=${XDG_CACHE_HOME:-$HOME/.cache}/tidewater/spark-venv
if ! cmp -s tests/spark/requirements.txt "$venv/installed.txt"; then
    echo "tests/spark: installing PySpark into $venv"
    rm -rf "$venv"
    "$python" -m venv "$venv" || unavailable "\`python3 -m venv\` does not work; install Python's venv module"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r tests/spark/requirements.txt \
        || unavailable "PySpark could not be installed by pip"
    cp tests/spark/requirements.txt "$venv/installed.txt"
fi

work=$(cd "$(mktemp -d)" && pwd -P)
trap 'rm -rf "$work"' EXIT

cargo build --quiet --release --workspace --example flights
TIDEWATER_KEEP=$work/fixtures cargo test --quiet --release --workspace --test it spark_fixtures
PYTHONDONTWRITEBYTECODE=1 "$venv/bin/python" tests/spark/check.py "$work"
