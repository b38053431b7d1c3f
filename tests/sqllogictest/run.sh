#!/usr/bin/env bash
# Runs DataFusion's own test queries as streams; see main.rs beside this. The files come from the package
# datafusion-sqllogictest, of the version of DataFusion that this project is built with: cargo fetches it, and nothing of it is
# built or kept here. Arguments are names of files to run, all without any.
set -euo pipefail
cd "$(dirname "$0")/../.."
version=$(cargo metadata --format-version 1 --locked | python3 -c '
import json, sys
print(next(p["version"] for p in json.load(sys.stdin)["packages"] if p["name"] == "datafusion"))')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/fetch"
printf '[package]\nname = "fetch"\nversion = "0.0.0"\nedition = "2024"\n[workspace]\n[lib]\npath = "lib.rs"\n[dependencies]\ndatafusion-sqllogictest = "=%s"\n' \
    "$version" >"$work/fetch/Cargo.toml"
touch "$work/fetch/lib.rs"
package=$(cargo metadata --format-version 1 --manifest-path "$work/fetch/Cargo.toml" | python3 -c '
import json, os, sys
print(os.path.dirname(next(p["manifest_path"] for p in json.load(sys.stdin)["packages"] if p["name"] == "datafusion-sqllogictest")))')
# Some files write beside themselves.
cp -R "$package" "$work/files"
chmod -R u+w "$work/files"
cargo build --release --workspace --features tidewater-workspace/sqllogictest --example sqllogictest
binary=${CARGO_TARGET_DIR:-target}/release/examples/sqllogictest
case $binary in /*) ;; *) binary=$PWD/$binary ;; esac
cd "$work/files"
"$binary" test_files "$@"
