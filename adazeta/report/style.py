"""The style of the page: light and dark by the reader's own setting, from a phone to a desk."""

# Okabe and Ito's colours, which people with any colour vision can tell apart, darker on white and
# lighter on black.
_LIGHT = "#0072b2 #c4500a #007a5c #a8447d #8a6a00 #2a8fc9 #6b4fb3 #555555".split()
_DARK = "#56b4e9 #f0904d #3cc79c #e08fbe #e0c04a #8fd0f5 #b6a0f0 #b0b0b0".split()


def _variables(colours: list[str]) -> str:
    return "".join(f"--c{place}:{colour};" for place, colour in enumerate(colours))


STYLE = (
    ":root{color-scheme:light dark;--ink:#1c2024;--weak:#5b6570;--page:#f6f7f9;--card:#fff;"
    f"--rule:#dde2e7;--bad:#a8321c;{_variables(_LIGHT)}}}"
    "@media(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--weak:#9aa5b1;--page:#14171a;"
    f"--card:#1d2126;--rule:#333a42;--bad:#ff9b85;{_variables(_DARK)}}}}}"
    + "".join(f".c{place}{{--c:var(--c{place})}}" for place in range(len(_LIGHT)))
    + """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1200px;margin:0 auto;padding:16px}
h1{font-size:1.5rem;line-height:1.25;margin:.4em 0 .6em;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:0 0 .6em}
h3{font-size:.95rem;margin:1.2em 0 .4em}
p{margin:.3em 0}
section{margin:28px 0}
input[name=axis]{position:absolute;opacity:0;pointer-events:none}
#steps:checked~main .by-evaluations,#evaluations:checked~main .by-steps{display:none}
.switch{color:var(--weak);margin-bottom:12px}
.switch label{display:inline-block;padding:3px 12px;margin:2px 4px 2px 0;
border:1px solid var(--rule);border-radius:999px;cursor:pointer;
color:var(--ink);background:var(--card)}
#steps:checked~main label[for=steps],#evaluations:checked~main label[for=evaluations]
{background:var(--ink);color:var(--card);border-color:var(--ink)}
#steps:focus-visible~main label[for=steps],#evaluations:focus-visible~main label[for=evaluations]
{outline:2px solid var(--c0);outline-offset:2px}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:1px;margin:0;
background:var(--card);border:1px solid var(--rule);border-radius:8px;overflow:hidden}
.facts div{padding:8px 12px;box-shadow:0 0 0 1px var(--rule)}
.facts div:first-child{grid-column:span 2}
dt{font-size:.78rem;color:var(--weak)}
dd{margin:0;font-weight:600;overflow-wrap:anywhere}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));gap:12px}
figure,article,.scroll{background:var(--card);border:1px solid var(--rule);border-radius:8px}
figure{margin:0;padding:12px 10px 8px;min-width:0;display:flex;flex-direction:column}
figcaption{font-weight:600;padding:0 4px}
.keys{list-style:none;margin:2px 0 6px;padding:0 4px;display:flex;flex-wrap:wrap;gap:0 14px;
font-size:.8rem;color:var(--weak);flex:1 0 auto}
.keys b{color:var(--ink);font-weight:600}
.keys li{overflow-wrap:anywhere}
.key{display:inline-block;width:16px;height:0;border-top:3px solid var(--c,var(--weak));
vertical-align:middle;margin-right:6px}
.key.dashed,.key.level{border-top-style:dashed}
.key.l1{border-top-style:dotted}
svg{display:block;width:100%;height:auto}
svg text{font-size:11px;fill:var(--weak);font-family:inherit}
.grid{stroke:var(--rule);stroke-width:1;fill:none}
.frame,.tick{stroke:var(--weak);stroke-width:1;fill:none}
.line{stroke:var(--c);stroke-width:1.8;fill:none;stroke-linejoin:round}
.line.dashed{stroke-dasharray:5 3}
.dot{fill:var(--c)}
.level{stroke:var(--weak);stroke-width:1.2;fill:none;stroke-dasharray:6 4}
.level.l1{stroke-dasharray:2 3}
.none{color:var(--weak);padding:24px 4px;font-size:.85rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{text-align:left;vertical-align:top;padding:6px 12px;border-top:1px solid var(--rule);
overflow-wrap:anywhere;white-space:pre-wrap;min-width:88px}
tr:first-child>*{border-top:0}
tbody tr:first-child>*{border-top:1px solid var(--rule)}
table:not(:has(thead)) tbody tr:first-child>*{border-top:0}
tbody th{font-weight:400;color:var(--weak);min-width:128px;width:30%;
position:sticky;left:0;background:var(--card)}
thead th{font-size:.82rem}
td.weak{color:var(--weak)}
code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.86em}
details>summary{cursor:pointer;padding:10px 4px;color:var(--weak)}
section>details>summary{font-size:1.05rem;color:var(--ink);font-weight:600}
article{padding:10px 14px;margin:0 0 10px}
.prompt{font-weight:600;white-space:pre-wrap;overflow-wrap:anywhere}
.sides{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,280px),1fr));gap:6px 20px}
.when{font-size:.8rem;color:var(--weak)}
.when b{color:var(--ink)}
.text{white-space:pre-wrap;overflow-wrap:anywhere}
.problem{color:var(--bad);border-left:3px solid var(--bad);padding-left:10px;overflow-wrap:anywhere}
footer{color:var(--weak);font-size:.8rem;margin:32px 0 8px}
@media print{body{background:none}.switch,.by-evaluations{display:none}figure{break-inside:avoid}}
"""
)
