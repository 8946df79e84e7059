# shellcheck shell=bash
# What the scripts of this folder share. Sourced by them, not run.
set -euo pipefail

dry_run=false
name=""

# fail MESSAGE: end with one line, as the Python commands do.
fail() {
  echo "error: $1" >&2
  exit 2
}

# need CLIENT: end if a program is missing; a dry run needs none.
need() {
  $dry_run || command -v "$1" >/dev/null || fail "$1 is not on the PATH: install it (docs/cloud.md)"
}

# run COMMAND...: run it, or print it in a dry run.
run() {
  if $dry_run; then
    quote "$@"
  else
    "$@"
  fi
}

# quote WORD...: the words as one line that a shell reads as these words.
quote() {
  local line
  printf -v line '%q ' "$@"
  echo "${line% }"
}

# usage: what the comment at the top of the calling script says.
usage() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
}

# parse_options "FLAG..." ARGUMENT...: set a variable for every flag given (--num-slices 2: num_slices=2), and the array
# `command` from what follows --.
parse_options() {
  local known=" $1 --name " flag
  shift
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    flag=$1
    shift
    case $flag in
      --dry-run) dry_run=true ;;
      --help) usage && exit 0 ;;
      *)
        [[ $known == *" $flag "* ]] || fail "$flag is not an option of ${0##*/}: see ${0##*/} --help"
        if [ "$flag" = --spot ]; then
          # shellcheck disable=SC2034 # the scripts that source this use it
          spot=true
          continue
        fi
        [[ $# -gt 0 && $1 != -- ]] || fail "$flag: its value is missing"
        flag=${flag#--}
        printf -v "${flag//-/_}" '%s' "$1"
        shift
        ;;
    esac
  done
  [ $# -gt 1 ] || fail "no command: put it behind --, as in ${0##*/} --name NAME ... -- python3 -m melodjinn_jax.train ..."
  shift
  # shellcheck disable=SC2034 # the scripts that source this use it
  command=("$@")
  [[ $name =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
    fail "--name '$name': give at most 40 lower-case letters, digits and hyphens, a letter first"
}

# require FLAG...: end if an option without a default was not given.
require() {
  local flag variable
  for flag; do
    variable=${flag#--}
    variable=${variable//-/_}
    [ -n "${!variable}" ] || fail "$flag is missing: see ${0##*/} --help"
  done
}
