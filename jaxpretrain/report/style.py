"""How the report looks."""

CSS = """
:root { --paper: #fff; --ink: #1b1f24; --soft: #59636e; --line: #d5dae0; --tint: #f4f6f8;
  --accent: #0b62a8; --shade: #0004;
  --good: #0a6b4b; --goodback: #e3f4ec; --bad: #a33a00; --badback: #fdeee6;
  color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --ink: #e4e8ec; --soft: #a3adb8;
  --line: #39424c; --tint: #1d232a; --accent: #7cc0f8; --shade: #fff5;
  --good: #7fdcb4; --goodback: #12382a;
  --bad: #ffb08a; --badback: #402314; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 78rem; margin: 0 auto; padding: 1.25rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; line-height: 1.25; margin: 2.5rem 0 .6rem; padding-top: .8rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; margin: 1.3rem 0 .4rem; overflow-wrap: anywhere; }
p { max-width: 48rem; margin: .5rem 0; overflow-wrap: anywhere; }
pre { overflow-x: auto; max-width: 100%; font-size: .82rem; line-height: 1.4; margin: .5rem 0; }
.note, figcaption, .small { color: var(--soft); font-size: .875rem; }
.warning { background: var(--badback); border-left: 4px solid var(--bad); padding: .6rem .8rem; }
.short { font-size: 1.06rem; background: var(--tint); border-left: 4px solid var(--accent);
  padding: .7rem .9rem; }
nav { font-size: .9rem; margin: 1rem 0; line-height: 1.9; }
nav a { display: inline-block; margin-right: 1rem; }
a { color: var(--accent); }
.finding { max-width: 48rem; border: 1px solid var(--line); border-radius: 6px; margin: .8rem 0;
  padding: .2rem .9rem .5rem; background: var(--tint); }
.finding h3 { margin-top: .6rem; }
.scroll { overflow-x: auto; max-width: 100%; border: 1px solid var(--line); border-radius: 6px;
  width: fit-content; margin: .7rem 0; background: /* a shadow where there is more to the right */
  linear-gradient(to left, var(--paper) 40%, transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to left, var(--shade), transparent) right / 1.1rem 100% no-repeat scroll; }
.scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--accent); }
table { border-collapse: separate; border-spacing: 0; font-size: .9rem; line-height: 1.35;
  font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .7rem; text-align: right; vertical-align: top;
  border-bottom: 1px solid var(--line); white-space: nowrap; }
tbody tr:last-child > * { border-bottom: 0; }
th { font-weight: 600; }
thead th { vertical-align: bottom; white-space: normal; min-width: 6rem; }
th:first-child { position: sticky; left: 0; z-index: 1; text-align: left; white-space: normal;
  background: var(--paper);
  min-width: 5rem; border-right: 1px solid var(--line); }
thead th, thead th:first-child { background: var(--tint); }
.name { display: block; width: max-content; max-width: 20rem; overflow-wrap: break-word; }
.prose td { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 9rem;
  max-width: 44rem; }
.prose thead th { text-align: left; }
td .small, th .small { display: block; font-weight: 400; font-size: .9em; }
td.best { background: var(--goodback); color: var(--good); font-weight: 700; }
td.bad { background: var(--badback); color: var(--bad); font-weight: 600; }
td.best .small, td.bad .small { color: inherit; }
.plots { display: grid; gap: 1rem; margin: .8rem 0; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 23rem), 1fr)); }
.plots > div { background: #fff; color: #000; border: 1px solid var(--line); border-radius: 6px;
  padding: .4rem; max-width: 34rem; break-inside: avoid; }
.plots b { display: block; font-size: .9rem; padding: .1rem .3rem .3rem; overflow-wrap: anywhere; }
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; max-width: 100%; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figure svg text { font-family: "DejaVu Sans", Verdana, system-ui, sans-serif; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: .6rem 0;
  padding: .4rem .6rem; background: #fff; color: #000; border: 1px solid var(--line);
  border-radius: 6px; font-size: .875rem; }
.legend li { display: flex; align-items: center; gap: .45rem; overflow-wrap: anywhere; }
.legend svg { width: 2.6rem; flex: none; }
details { margin: .6rem 0; }
summary { cursor: pointer; padding: .35rem 0; font-weight: 600; overflow-wrap: anywhere; }
details > *:not(summary) { margin-left: .2rem; }
.sample { border-left: 3px solid var(--line); padding: .1rem .8rem; margin: .7rem 0;
  max-width: 48rem; font-size: .93rem; }
.sample dt { color: var(--soft); font-size: .8rem; margin-top: .35rem; }
.sample dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
mark { background: #ffe08a; color: #000; padding: 0 .15em; border-radius: 2px; }
@media (max-width: 600px) {
  main { padding: 1rem .75rem 3rem; }
  h1 { font-size: 1.45rem; }
  th, td { padding: .35rem .5rem; }
  .name { max-width: 9rem; }
  .prose td { min-width: 6.5rem; }
  .plots > div { padding: .3rem .1rem; }
}
@media print {
  @page { size: A4; margin: 14mm 12mm; }
  :root { --paper: #fff; --ink: #000; --soft: #444; --line: #bbb; --tint: #f4f4f4; --good: #064;
    --goodback: #e3f4ec; --bad: #a33a00; --badback: #fdeee6; --accent: #000; color-scheme: light; }
  html { font-size: 10pt; }
  body { font-size: 1rem; }
  main { max-width: none; padding: 0; }
  nav { display: none; }
  h2, h3, summary, .legend { break-after: avoid; }
  h2 { margin-top: 1.4rem; }
  .finding, .sample, tr { break-inside: avoid; }
  .scroll { overflow: visible; max-width: none; background: none; }
  table { font-size: 7.5pt; }
  th, td { padding: .15rem .3rem; white-space: normal; }
  thead th { min-width: 0; }
  th:first-child { position: static; min-width: 0; }
  .plots { grid-template-columns: 1fr 1fr; gap: .5rem; }
}
"""
