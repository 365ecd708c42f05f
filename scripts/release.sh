#!/bin/sh
# A release: sh scripts/release.sh check | tag. check builds the wheel and runs it in an empty environment and folder;
# tag does that, and tags the commit with the version of pyproject.toml and its part of CHANGELOG.md. Nothing is uploaded.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
notes=$(awk -v v="$version" '/^## /{found = index($0, v) > 0; next} found' CHANGELOG.md)

check() {
    [ -n "$notes" ] || { echo "CHANGELOG.md says nothing of $version; write a heading '## $version'" >&2; exit 2; }
    grep -q "^version: $version" CITATION.cff || { echo "CITATION.cff is not of version $version" >&2; exit 2; }
    rm -rf build/release && mkdir -p build/release/empty
    "$PYTHON" -m venv build/release/venv
    build/release/venv/bin/python -m pip install --quiet build
    build/release/venv/bin/python -m build --outdir dist . >build/release/build.log 2>&1 ||
        { tail -n 20 build/release/build.log >&2; exit 2; }
    wheel="$PWD/dist/glyphlm-$version-py3-none-any.whl"
    "$PYTHON" -m venv build/release/user
    build/release/user/bin/python -m pip install --quiet --constraint constraints.txt "$wheel"
    build/release/user/bin/python -m pip check
    cd build/release/empty
    PATH="$PWD/../user/bin:$PATH"
    python -c 'from importlib.metadata import files
have = {file.name for file in files("glyphlm") or ()}
assert {"LICENSE", "py.typed", "phrasebook.yaml", "best_bvv_ru.yaml", "recipe.schema.json", "report.html.jinja"} <= have'
    glyphlm --version
    for shell in bash zsh fish; do glyphlm completion $shell >completion.$shell; done
    bash -n completion.bash
    glyphlm plan best_bvv_ru --gpu h200 --no-measure >plan.txt
    glyphlm quickstart --steps 5
    glyphlm train llm_fix_min_classic --profile tiny --train.steps 3 --out runs/tiny
    glyphlm generate runs/tiny --prompt "The currency of " --max-new-tokens 5
    glyphlm show runs/quickstart/runs/glyph --out show.html
    glyphlm report runs/tiny --out report.html
    cd ../../..
    echo "$wheel: installed in $(du -sm build/release/user | cut -f1) MB, and run in an empty folder"
}

case ${1:-} in
check) check ;;
tag)
    [ -z "$(git status --porcelain)" ] || { echo "there are changes that are not committed" >&2; exit 2; }
    grep -q "^## .*$version.*unreleased" CHANGELOG.md && { echo "CHANGELOG.md says unreleased; write the date" >&2; exit 2; }
    check
    # cleanup: git takes lines that begin with # for comments
    printf 'GlyphLM %s\n%s\n' "$version" "$notes" | git tag -a "v$version" --cleanup=whitespace -F -
    echo "tagged v$version; publish: git push origin v$version, and upload dist/ with twine"
    ;;
*) echo "usage: sh scripts/release.sh check|tag" >&2; exit 2 ;;
esac
