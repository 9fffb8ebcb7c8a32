#!/usr/bin/env bash
# A virtual environment for each peer that replies.py and judging.py measure against, in
# .cache/peers/NAME (2.3 GB in all, ignored by Git):
#     bash tests/benchmarks/peers/make_venvs.sh                   # all of them
#     bash tests/benchmarks/peers/make_venvs.sh curator           # one
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

install() { ".cache/peers/$peer/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }

if [ $# -eq 0 ]; then set -- curator distilabel data_designer inspect; fi
for peer; do
  echo "$peer ..."
  test -x ".cache/peers/$peer/bin/python" || "${PYTHON:-python3}" -m venv ".cache/peers/$peer"
  case $peer in
    curator) install bespokelabs-curator==0.1.31 ;;
    distilabel) install 'distilabel[openai]==1.5.3' requests ;;  # an undeclared import
    data_designer)
      # 0.9.7 needs a newer certifi than some package indexes have, else the same as 0.9.6.
      install data-designer==0.9.7 || {
        install data-designer==0.9.6
        install --no-deps data-designer==0.9.7 data-designer-config==0.9.7 data-designer-engine==0.9.7
      } ;;
    inspect) install inspect-ai==0.3.285 ;;
    *) echo "$peer: the peers are curator, distilabel, data_designer and inspect" >&2; exit 1 ;;
  esac
done
