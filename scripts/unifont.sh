#!/bin/sh
# Make sure that GNU Unifont is there, whose glyphs cover nearly every character.
# The font is the system's package; where there is none, say the ways to provide it.
[ -n "$GLYPHLM_FONT" ] && exit 0
for folder in /usr/share/fonts /usr/local/share/fonts "$HOME/.local/share/fonts" "$HOME/.fonts" "$HOME/Library/Fonts" \
              /Library/Fonts /opt/homebrew/share; do
    [ -n "$(find "$folder" -iname 'unifont*.[ot]tf' 2>/dev/null | head -n 1)" ] && exit 0
done
as_root=
[ "$(id -u)" = 0 ] || as_root="sudo -n"
if command -v apt-get >/dev/null; then
    echo "installing GNU Unifont (fonts-unifont)"
    $as_root apt-get install -y -qq fonts-unifont >/dev/null 2>&1 && exit 0
    $as_root apt-get update -qq >/dev/null 2>&1
    $as_root apt-get install -y -qq fonts-unifont >/dev/null 2>&1 && exit 0
fi
echo "GNU Unifont was not found. Install your system's package (Debian: fonts-unifont, Fedora: unifont-fonts," >&2
echo "Homebrew: font-gnu-unifont), or name font files: GLYPHLM_FONT=/path/unifont.otf make quickstart" >&2
exit 2
