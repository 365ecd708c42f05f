#!/bin/sh
# Install GNU Unifont, whose glyphs cover nearly every character, unless it is installed or GLYPHLM_FONT names a font.
# Where it cannot be had: say so and succeed, since other fonts will do for most text; with --required, fail.
PATIENCE=${PATIENCE:-120} # seconds; a new cloud machine updates itself for a minute or two, and holds apt's locks
[ -n "$GLYPHLM_FONT" ] && exit 0
for folder in /usr/share/fonts /usr/local/share/fonts "$HOME/.local/share/fonts" "$HOME/.fonts" "$HOME/Library/Fonts" \
              /Library/Fonts /opt/homebrew/share/fonts; do
    [ -n "$(find "$folder" -iname 'unifont*.[ot]tf' 2>/dev/null | head -n 1)" ] && exit 0
done

as_root=
[ "$(id -u)" = 0 ] || as_root="sudo -n"
waited=0
apt() { # apt waits for dpkg's lock itself; for the locks of its lists and archives it does not
    while :; do
        said=$($as_root env LC_ALL=C DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout="$PATIENCE" \
               -o Acquire::http::Timeout=20 "$@" 2>&1 </dev/null) && return 0
        case $said in *"Could not get lock"*) ;; *) return 1 ;; esac
        [ "$waited" -lt "$PATIENCE" ] || return 1
        waited=$((waited + 5)) && sleep 5
    done
}
if command -v apt-get >/dev/null; then
    echo "installing GNU Unifont (fonts-unifont)"
    apt install -y fonts-unifont && exit 0
    apt update && apt install -y fonts-unifont && exit 0
    echo "apt-get: $(printf '%s\n' "$said" | tail -n 1)" >&2
fi
if command -v brew >/dev/null; then
    echo "installing GNU Unifont (font-gnu-unifont)"
    said=$(brew install --quiet --cask font-gnu-unifont 2>&1 </dev/null) && exit 0
    echo "brew: $(printf '%s\n' "$said" | tail -n 1)" >&2
fi
echo "GNU Unifont was not found. Install your system's package (Debian: fonts-unifont, Fedora: unifont-fonts," >&2
echo "Homebrew: font-gnu-unifont), or name font files: GLYPHLM_FONT=/path/unifont.otf make ..." >&2
[ "$1" = --required ] && exit 2
echo "Going on with the other fonts of this system." >&2
exit 0
