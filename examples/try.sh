#!/bin/sh
# The main job on a bare Debian with Rust: says what every frame of a memory image is.
#
#   sh examples/try.sh                         boots a real guest in the lab (about two minutes) and colors that
#   sh examples/try.sh IMAGE [OPTION...]       colors an image; options as of `kaleidoscope color`
#
# The map goes to target/try/guest.kscope, its picture to target/try/guest.png.
set -eu
cd "$(dirname "$0")/.."
mkdir -p target/try

sh examples/lab/setup.sh compiler
cargo build --quiet --release --package kaleidoscope-examples
kaleidoscope=target/release/kaleidoscope

if [ $# -eq 0 ]; then
    guest=target/try/guest
    if [ ! -e "$guest/ram.bin" ]; then
        sh examples/lab/setup.sh
        "$kaleidoscope" lab run -o "$guest"
    fi
    set -- "$guest/ram.bin" --layout "$guest/layout.txt" --regs "$guest/regs.txt"
fi
"$kaleidoscope" color "$@" --output target/try/guest.kscope --plot target/try/guest.png
echo
echo "map in target/try/guest.kscope, picture in target/try/guest.png; next: $kaleidoscope explain --help"
