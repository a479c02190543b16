"""How the page looks: one style sheet, in light and in dark, on a phone and on paper."""

from collections.abc import Mapping

from jaxrl.charts.style import DARK, LIGHT

GROUND = {"ground": ("#f6f7f9", "#121519"), "good": ("#1a7f4b", "#4cc38a"), "bad": ("#c0341d", "#ff8a70")}

SHEET = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--ground);color:var(--ink);line-height:1.5;font-size:15px;
 font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1180px;margin:0 auto;padding:0 24px 64px}
header{padding:40px 0 4px}
h1{font-size:28px;line-height:1.2;letter-spacing:-.015em;margin:0 0 6px;overflow-wrap:anywhere}
h2{font-size:19px;line-height:1.3;letter-spacing:-.01em;margin:0 0 14px}
h3{font-size:15px;margin:22px 0 8px}
p{margin:0 0 10px}
.lead{color:var(--muted);margin:0}
nav{position:sticky;top:0;z-index:2;background:var(--ground);padding:10px 0;margin:10px 0 18px;
 border-bottom:1px solid var(--grid);display:flex;gap:4px 18px;overflow-x:auto;white-space:nowrap;
 font-size:14px}
nav a{color:var(--muted);text-decoration:none}
nav a:hover,nav a:focus-visible{color:var(--ink)}
a{color:var(--c0)}
section{margin:0 0 44px;scroll-margin-top:64px}
.card{background:var(--paper);border:1px solid var(--grid);border-radius:10px;padding:16px 18px}
.card+.card{margin-top:14px}
.card>:first-child{margin-top:0}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));gap:14px}
.charts.wide{grid-template-columns:repeat(auto-fill,minmax(min(100%,460px),1fr))}
.charts figure,.films figure{margin:0;padding:10px 10px 6px;min-width:0}
.charts>.card,.films>.card{margin:0}
figure svg{display:block;width:100%;height:auto;font-family:inherit}
figcaption{color:var(--muted);font-size:12.5px;line-height:1.4;padding:2px 6px 6px}
.legend{display:flex;flex-wrap:wrap;gap:4px 20px;margin:0 0 12px;padding:0;list-style:none;color:var(--muted);
 font-size:13.5px}
.legend li{display:flex;align-items:center;gap:8px;min-width:0;overflow-wrap:anywhere}
.legend svg{flex:none}
.bars{overflow-x:auto}
.bars svg{min-width:640px}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,150px),1fr));gap:12px 22px;margin:0}
dt{color:var(--muted);font-size:12.5px}
dd{margin:0;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.lines dl{display:block}.lines dl>div{margin-top:12px}
.key dd{font-size:20px;line-height:1.3;letter-spacing:-.01em}
.scroll{overflow-x:auto;max-width:100%;overscroll-behavior-x:contain;
 background:linear-gradient(to left,var(--paper) 40%,transparent) right/56px 100% no-repeat local,
 linear-gradient(to left,var(--grid),transparent) right/14px 100% no-repeat scroll}
table{border-collapse:separate;border-spacing:0;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:7px 12px 7px 0;vertical-align:baseline;border-bottom:1px solid var(--grid);
 font-weight:400}
thead th{color:var(--muted);font-size:12.5px;line-height:1.3;vertical-align:bottom}
tbody tr:last-child>*{border-bottom:0}
tbody th{font-weight:600;min-width:11em;max-width:30em;overflow-wrap:anywhere}
tr>:first-child{position:sticky;left:0;background:var(--paper)}
td,.kept{white-space:nowrap}
.prose{display:block;white-space:normal;min-width:16em;color:var(--muted)}
.num{text-align:right}
tr>:last-child{padding-right:0}
.note{color:var(--muted);font-size:13px;margin:10px 0 0}
.alert{border-left:3px solid var(--c4)}
.alert p{margin:0 0 4px;overflow-wrap:anywhere}
.state{font-weight:600;white-space:nowrap}
.running{color:var(--c0)}.done{color:var(--good)}.stopped{color:var(--muted)}.failed,.died{color:var(--bad)}
details{margin:12px 0 0}
details.card{margin:0 0 10px}
summary{cursor:pointer;font-weight:600;overflow-wrap:anywhere}
details.card>summary+*{margin-top:14px}
pre{margin:8px 0;padding:10px 12px;background:var(--ground);border-radius:6px;font-size:12.5px;
 line-height:1.5;white-space:pre-wrap;overflow-wrap:anywhere;font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.films{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,260px),1fr));gap:14px}
.films video,.films img{display:block;width:100%;height:auto;border-radius:6px;background:#000}
footer{color:var(--muted);font-size:13px;border-top:1px solid var(--grid);padding-top:14px}
@media (max-width:640px){main{padding:0 14px 40px}header{padding-top:24px}h1{font-size:23px}
 .card{padding:12px}.charts figure{padding:6px 2px 4px}tbody th{min-width:8em}}
@media print{details::details-content{content-visibility:visible;block-size:auto}
 body{background:#fff;font-size:11pt}main{max-width:none;padding:0}nav{display:none}
 section{margin-bottom:20px}figure,tr{break-inside:avoid}h2{break-after:avoid}.scroll{overflow:visible}
 .charts,.charts.wide{grid-template-columns:1fr 1fr}}
"""


def variables(colours: Mapping[str, str], theme: int) -> str:
    found = {**colours, **{name: pair[theme] for name, pair in GROUND.items()}}
    return ";".join(f"--{name}:{hue}" for name, hue in found.items())


def style_sheet() -> str:
    """The whole of it. On paper it is light, whatever the screen is."""
    light, dark = variables(LIGHT, 0), variables(DARK, 1)
    themes = f":root{{color-scheme:light dark;{light}}}\n"
    themes += f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return themes + SHEET
