#!/usr/bin/env bash
# Opens a page of `ldm report` in a headless Chromium without a network, and fails unless all of its curves are drawn, no error occurred in its
# script and nothing was requested. Writes a screenshot.
#
# Usage: scripts/check-report.sh REPORT.html [SCREENSHOT.png]        beside the page by default
#
# Needs Chromium as `chromium` or in $CHROMIUM. SIZE is the window in pixels (1400,3000), DARK=1 takes the dark colours.
set -euo pipefail
if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: scripts/check-report.sh REPORT.html [SCREENSHOT.png]" >&2
    exit 2
fi
page=$(realpath "$1")
screenshot=$(realpath -m "${2:-${page%.html}.png}")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# All requests would go to a proxy that isn't there, and into the log.
browser=("${CHROMIUM:-chromium}" --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-default-apps --disable-sync --disable-extensions --proxy-server=127.0.0.1:1
    --user-data-dir="$work/profile" --window-size="${SIZE:-1400,3000}" --hide-scrollbars --virtual-time-budget=10000)
[ -z "${DARK:-}" ] || browser+=(--blink-settings=preferredColorScheme=0)
url="file://$page"

"${browser[@]}" --log-net-log="$work/net.json" --dump-dom "$url" >"$work/dom.html" 2>"$work/log.txt" ||
    { cat "$work/log.txt" >&2; exit 1; }
"${browser[@]}" --screenshot="$screenshot" "$url" >/dev/null 2>&1

# What the page's script notes of itself on its root element.
root=$(grep -o '<html[^>]*>' "$work/dom.html" | head -n 1)
value() { sed -n "s/.* data-$1=\"\([^\"]*\)\".*/\1/p" <<<"$root"; }
fail() { echo "check-report: $1" >&2; failed=1; }
failed=0
errors=$(value errors) charts=$(value charts) drawn=$(value drawn) points=$(value points) requests=$(value requests)
[ -n "$charts" ] || fail "the script did not run to its end"
[ "$errors" = 0 ] || fail "${errors:-unknown} errors in the script: $(value error)"
[ "${charts:-0}" -gt 0 ] || fail "the page has no charts"
[ "$drawn" = "$charts" ] || fail "${drawn:-0} of ${charts:-0} charts are drawn"
[ "$requests" = 0 ] || fail "the page requested ${requests:-an unknown number of} resources"
# In the document that was drawn: paths of curves with at least one coordinate.
paths=$(grep -o '<path class="curve[^"]*" d="M[0-9]' "$work/dom.html" | wc -l)
[ "$paths" -ge "${charts:-1}" ] || fail "$paths paths for ${charts:-0} charts"
# The browser may ask its maker for news; only what the page could have caused counts.
foreign=$(grep -o '"url":"[a-z]*://[^"]*"' "$work/net.json" | grep -v '"url":"file://' | grep -Ev 'google(apis)?\.com|gvt1\.com' | sort -u || true)
[ -z "$foreign" ] || fail "requests in the browser's log: $foreign"
[ -s "$screenshot" ] || fail "no screenshot"
[ $failed = 0 ] || exit 1
echo "$drawn charts, $(value lines) lines, $points points, $paths paths; no error, no request; $screenshot"
