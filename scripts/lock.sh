#!/bin/sh
# Write requirements/: every library at one version, with the digests of its files. Run it to take newer ones.
set -eu
cd "$(dirname "$0")/.."
uv="$1"
lock() {
  "$uv" pip compile --universal --python-version 3.11 --generate-hashes --upgrade --quiet \
    --no-header --no-annotate --no-emit-index-url --no-emit-find-links "$@"
}
lock pyproject.toml --all-extras --output-file requirements/runtime.txt
lock pyproject.toml --all-extras --group dev --constraint requirements/runtime.txt --output-file requirements/dev.txt
lock --group build --constraint requirements/dev.txt --output-file requirements/build.txt
