"""How the page looks: fonts, values of gradio's theme, and a style sheet. Nothing is fetched."""

FONTS = (
    *("system-ui", "-apple-system", "Segoe UI", "Roboto", "Hiragino Sans", "Apple SD Gothic Neo", "Yu Gothic UI"),
    *("Malgun Gothic", "Noto Sans", "Noto Sans CJK JP", "Noto Sans CJK KR", "sans-serif"),
)
QUIET = {  # values of gradio's theme; each is also used where the page is dark unless it has a value of its own
    "body_background_fill": "*neutral_50",
    "body_background_fill_dark": "*neutral_950",
    "background_fill_primary": "white",
    "background_fill_primary_dark": "*neutral_900",
    "block_background_fill": "white",
    "block_background_fill_dark": "*neutral_900",
    "block_border_width": "1px",
    "block_border_color": "*neutral_200",
    "block_border_color_dark": "*neutral_800",
    "block_shadow": "none",
    "block_label_text_size": "*text_sm",
    "input_background_fill": "white",
    "input_background_fill_dark": "*neutral_900",
    "button_primary_background_fill": "*primary_700",
    "button_primary_background_fill_hover": "*primary_800",
    "button_primary_background_fill_dark": "*primary_700",
    "button_primary_background_fill_hover_dark": "*primary_600",
    "button_primary_text_color": "white",
    "button_primary_text_color_dark": "white",
    "button_secondary_background_fill": "white",
    "button_secondary_background_fill_hover": "*neutral_100",
    "button_secondary_background_fill_dark": "*neutral_800",
    "button_secondary_background_fill_hover_dark": "*neutral_700",
    "button_secondary_border_color": "*neutral_300",
    "button_secondary_border_color_dark": "*neutral_700",
    "button_border_width": "1px",
    "button_large_padding": "8px 14px",
    "button_large_text_size": "*text_md",
    "button_large_text_weight": "500",
    "button_small_text_weight": "400",
}
CSS = """
footer { display: none !important; }
.dark { color-scheme: dark; }
.gradio-container .app { max-width: 1180px !important; margin: 0 auto !important; padding: 14px 20px !important; }
[lang=ja] { font-family: system-ui, "Hiragino Sans", "Yu Gothic UI", "Noto Sans CJK JP", sans-serif; }
[lang=ko] { font-family: system-ui, "Apple SD Gothic Neo", "Malgun Gothic", "Noto Sans CJK KR", sans-serif;
  word-break: keep-all; }
.gradio-container .html-container { padding: 0 !important; }
.gradio-container .gap { gap: 12px; }
#imp-top { align-items: center; justify-content: space-between; gap: 8px 16px; }
#imp-top > * { flex: 0 1 auto; width: auto; min-width: 0 !important; border: 0; background: none; padding: 0; }
#imp-language label { padding: 4px 10px; font-size: 13px; background: none; border: 0; box-shadow: none; }
#imp-language input { position: absolute; opacity: 0; }
#imp-language label span { margin: 0; }
#imp-language label.selected { background: var(--neutral-200); color: var(--neutral-900); border-radius: 8px; }
#imp-language label:focus-within { outline: 2px solid var(--primary-600); }
.imp-header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 14px; }
.imp-header h1 { margin: 0; font-size: 22px; font-weight: 650; letter-spacing: -.01em; }
.imp-header p { margin: 0; }
.imp-header p, .imp-label, .imp-about, .imp-hint, .imp-small, .imp-break { color: var(--neutral-500); }
.dark :is(.imp-header p, .imp-label, .imp-about, .imp-hint, .imp-small, .imp-break) { color: var(--neutral-400); }
#imp-main { display: grid; gap: 16px 20px; grid-template: "left right" auto "more right" 1fr / 2fr 3fr; }
#imp-left { grid-area: left; }
#imp-more { grid-area: more; }
#imp-right { grid-area: right; }
#imp-image { height: 300px; min-height: 0; }
#imp-talk { flex: 1 1 auto; height: calc(100dvh - 224px); min-height: 300px; overflow-y: auto; display: flex;
  flex-direction: column-reverse; flex-wrap: nowrap; justify-content: flex-start; padding: 4px 16px 16px; gap: 0;
  background: var(--background-fill-primary); border: 1px solid var(--block-border-color); border-radius: 14px; }
#imp-talk > * { flex: none; gap: 0; width: 100%; margin-bottom: auto; }
#imp-notice { min-height: 22px; }
#imp-talk .block, #imp-notice { border: 0; background: none; padding: 0; overflow: visible; }
.imp-talk { display: flex; flex-direction: column; align-items: flex-start; line-height: 1.5; }
.imp-talk p { margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }
.imp-talk .imp-hint { align-self: center; margin: 24px 0; text-align: center; }
.imp-talk .imp-asked { align-self: flex-end; max-width: 85%; margin-top: 14px; padding: 7px 13px;
  border-radius: 14px 14px 4px 14px; background: #e3f1ee; color: #11332f; }
.imp-talk .imp-answered { max-width: 92%; margin-top: 8px; padding: 7px 13px; border-radius: 14px 14px 14px 4px;
  background: var(--neutral-100); color: var(--neutral-900); min-height: 38px; }
.imp-talk .imp-box img { display: block; max-width: 100%; max-height: 340px; margin: 6px 0 8px; border-radius: 8px; }
.imp-talk .imp-small, .imp-talk .imp-break { margin-top: 3px; padding: 0 4px; font-size: 12px; }
.imp-talk .imp-break { align-self: stretch; margin-top: 16px; padding-top: 10px; text-align: center;
  border-top: 1px solid var(--block-border-color); }
.imp-writing::after { content: "▍"; margin-left: 1px; opacity: .5; animation: imp-blink 1s steps(2) infinite; }
@keyframes imp-blink { 50% { opacity: 0; } }
.dark .imp-talk .imp-asked { background: #123f3a; color: #e3f5f1; }
.dark .imp-talk .imp-answered { background: var(--neutral-800); color: var(--neutral-100); }
.imp-problem, .imp-note { margin: 0; padding: 7px 12px; border-radius: 10px; font-size: 14px; overflow-wrap: anywhere; }
.imp-problem { background: #fdecea; color: #7a1a12; }
.imp-note { background: var(--neutral-100); color: var(--neutral-700); }
.dark .imp-problem { background: #43201c; color: #ffd9d3; }
.dark .imp-note { background: var(--neutral-800); color: var(--neutral-200); }
.imp-label, .imp-about { margin: 0; font-size: 13px; line-height: 1.5; }
#imp-buttons { gap: 8px; }
#imp-buttons button { flex: 0 1 auto; }
#imp-new { margin-left: auto; }
#imp-examples { display: grid; gap: 8px; grid-template-columns: 1fr 1fr; }
#imp-examples button { min-width: 0; flex-wrap: nowrap; justify-content: flex-start; text-align: left; padding: 5px 8px;
  white-space: normal; line-height: 1.3; min-height: 52px; }
#imp-examples img { width: 40px; height: 40px; object-fit: cover; border-radius: 6px; flex: none; margin: 0 8px 0 0; }
@media (max-width: 700px) {
  .gradio-container .app { padding: 10px 12px 20px !important; }
  #imp-main { grid-template: "left" auto "right" auto "more" auto / minmax(0, 1fr); }
  #imp-top { flex-wrap: nowrap; }
  #imp-talk { height: auto; min-height: 90px; max-height: 60dvh; padding: 0 12px 12px; }
  #imp-image { height: 230px; }
  .imp-header p { display: none; }
}
@media (prefers-reduced-motion: reduce) { .imp-writing::after { animation: none; } }
"""
