"""The interface's words in English, Japanese and Korean: pure functions from a language and a name to a text."""

from collections.abc import Sequence

LANGUAGES = {"en": "English", "ja": "日本語", "ko": "한국어"}

ENGLISH = {
    "tagline": "Show a small model a picture and ask.",
    "language": "Language of this page",
    "language_note": "The answers stay in English.",
    "image": "Picture",
    "drop": "# Drop a picture here\nor click to choose one",
    "examples": "Or try one of these",
    "model": "Model that answers",
    "ready": "ready",
    "slow": "slow without a GPU",
    "not_downloaded": "not on this machine, {size} GB",
    "about_nano": "It knows only simple drawings, clean printed text and simple English, and it makes mistakes. "
    "About a photograph it says “I only know drawings.”",
    "about_imp": "It was taught in English. It can be wrong, and it may name things that are not in the picture: "
    "check what matters.",
    "settings": "Settings",
    "max_new_tokens": "Longest answer (tokens)",
    "temperature": "Temperature (0: always the likeliest words)",
    "seed": "Seed of answers by chance (empty: another answer each time)",
    "empty": "Choose a picture on this page, then ask about it.",
    "begin": "Ask about the picture, or name a thing and let the model find it.",
    "question": "Your question",
    "placeholder": "A question, or a thing to find: the bus",
    "ask": "Ask",
    "find": "Find it",
    "stop": "Stop",
    "new": "New conversation",
    "you": "You",
    "find_request": "Find: {phrase}",
    "found": "{phrase}: left {x0}, top {y0}, right {x1}, bottom {y1}",
    "fractions": "Fractions of the picture’s width and height, from its upper left corner.",
    "not_found": "{checkpoint} did not find it. It said: “{answer}”",
    "summary": "{checkpoint} · {device} {dtype} · {tokens} tokens in {seconds} s",
    "cut": "cut at the longest length: see Settings",
    "stopped": "stopped; the model does not remember this answer",
    "unknown_words": "imp-nano learned only simple English and knows few words of this question: expect no right "
    "answer.",
    "queued": "Other questions come first. Please wait.",
    "loading": "{name} is being loaded …",
    "loaded": "{name} answers now. A new conversation begins.",
    "model_changed": "Another model was chosen on this page. A new conversation with {name} begins here.",
    "set_aside": "The model has forgotten the older conversation, because many people use this page. "
    "A new one begins here.",
    "error_empty": "The question is empty. Ask something about the picture.",
    "error_phrase": "Write what to look for, such as “the bus”.",
    "error_no_image": "There is no picture yet. Choose one first.",
    "error_wait": "The model is still answering. Wait, or press Stop.",
    "error_long": "The question, or the conversation, is too long for the model. Ask a shorter question, or begin "
    "a new conversation.",
    "error_marker": "A question cannot contain “<image>”. Leave it out.",
    "error_file": "This file cannot be read as a picture. Save it as JPEG or PNG and choose it again.",
    "error_big": "This file has {size} MB; up to {limit} MB are possible. Choose a smaller one.",
    "error_pixels": "This picture has more than {limit} million pixels. Make it smaller and choose it again.",
    "error_gone": "This picture is no longer there. Choose it again.",
    "error_settings": "A setting cannot be used. Longest answer: a whole number from 1 to {most}. Temperature: 0 to 2. "
    "Seed: empty, or a whole number from 0.",
    "error_memory": "There is not enough free memory for this. Close other programs, or choose a smaller model.",
    "error_not_here": "{name} is not on this machine. Its {size} GB come when the page is started with it: "
    "python -m imp_kit chat-web --checkpoint {name}",
    "error_load": "{name} could not be loaded, so {current} still answers. The reason: {reason}",
    "error_no_model": "No model is loaded. Choose one in the menu.",
    "error_other": "This did not work: {reason}",
}

JAPANESE = {
    "tagline": "小さなモデルに画像を見せて、質問してみましょう。",
    "language": "このページの言語",
    "language_note": "回答は英語のままです。",
    "image": "画像",
    "drop": "# ここに画像をドロップ\nまたはクリックして選択",
    "examples": "まずはこちらを試す",
    "model": "回答するモデル",
    "ready": "使えます",
    "slow": "GPU がないため遅い",
    "not_downloaded": "このマシンにありません（{size} GB）",
    "about_nano": "分かるのは、簡単な絵、きれいな活字、簡単な英語だけで、間違えることもあります。"
    "写真には「I only know drawings.」（絵しか知りません）と答えます。",
    "about_imp": "英語で学習したモデルです。"
    "間違えることや、画像にないものを挙げることがあります。大事なことは確かめてください。",
    "settings": "設定",
    "max_new_tokens": "回答の最大の長さ（トークン）",
    "temperature": "温度（0：いつも最も確率の高い語を選ぶ）",
    "seed": "ランダムな回答のシード（空欄：毎回ちがう回答）",
    "empty": "まず画像を選び、それから質問してください。",
    "begin": "画像について質問するか、物の名前を書いて探させてください。",
    "question": "質問",
    "placeholder": "質問、または探す物を英語で：the bus",
    "ask": "質問する",
    "find": "探す",
    "stop": "止める",
    "new": "新しい対話",
    "you": "あなた",
    "find_request": "探す：{phrase}",
    "found": "{phrase}：左 {x0}、上 {y0}、右 {x1}、下 {y1}",
    "fractions": "画像の左上を基準とした、幅と高さに対する割合です。",
    "not_found": "{checkpoint} には見つかりませんでした。回答：“{answer}”",
    "summary": "{checkpoint} · {device} {dtype} · {tokens} トークン、{seconds} 秒",
    "cut": "最大の長さで打ち切り（「設定」で変更できます）",
    "stopped": "停止しました。この回答をモデルは覚えていません",
    "unknown_words": "imp-nano は簡単な英語だけを学習しており、この質問の語をほとんど知りません。"
    "正しい回答は期待できません。",
    "queued": "ほかの質問が先です。お待ちください。",
    "loading": "{name} を読み込んでいます…",
    "loaded": "これからは {name} が回答します。新しい対話を始めます。",
    "model_changed": "このページで別のモデルが選ばれました。ここから {name} との新しい対話が始まります。",
    "set_aside": "多くの人がこのページを使っているため、モデルは前の対話を忘れました。ここから新しい対話が始まります。",
    "error_empty": "質問が空です。画像について質問を書いてください。",
    "error_phrase": "探す物を書いてください。例：the bus",
    "error_no_image": "まだ画像がありません。先に画像を選んでください。",
    "error_wait": "モデルはまだ回答中です。待つか、「止める」を押してください。",
    "error_long": "質問または対話が長すぎて、モデルは読めません。短い質問にするか、新しい対話を始めてください。",
    "error_marker": "質問に「<image>」は使えません。取り除いてください。",
    "error_file": "このファイルは画像として読めません。JPEG か PNG で保存して、もう一度選んでください。",
    "error_big": "このファイルは {size} MB です。{limit} MB までのファイルを選んでください。",
    "error_pixels": "この画像は {limit} 百万画素を超えています。小さくして、もう一度選んでください。",
    "error_gone": "この画像はもうありません。もう一度選んでください。",
    "error_settings": "使えない設定があります。回答の最大の長さは 1 から {most} までの整数、温度は 0 から 2 まで、"
    "シードは空欄か 0 以上の整数です。",
    "error_memory": "空きメモリが足りません。ほかのプログラムを閉じるか、小さいモデルを選んでください。",
    "error_not_here": "{name} はこのマシンにありません。"
    "次のコマンドでページを起動すると {size} GB をダウンロードします：python -m imp_kit chat-web --checkpoint {name}",
    "error_load": "{name} を読み込めなかったため、{current} が引き続き回答します。理由：{reason}",
    "error_no_model": "モデルが読み込まれていません。メニューから選んでください。",
    "error_other": "うまくいきませんでした：{reason}",
}

KOREAN = {
    "tagline": "작은 모델에게 이미지를 보여 주고 질문해 보세요.",
    "language": "이 페이지의 언어",
    "language_note": "답변은 영어로 나옵니다.",
    "image": "이미지",
    "drop": "# 여기에 이미지를 놓으세요\n또는 클릭하여 선택하세요",
    "examples": "먼저 이것을 해 보세요",
    "model": "답하는 모델",
    "ready": "사용 가능",
    "slow": "GPU가 없어 느림",
    "not_downloaded": "이 컴퓨터에 없음, {size} GB",
    "about_nano": "단순한 그림, 깨끗한 인쇄 글자, 쉬운 영어만 알고, 틀리기도 합니다. "
    "사진에는 “I only know drawings.”(그림만 압니다)라고 답합니다.",
    "about_imp": "영어로 학습한 모델입니다. "
    "틀릴 수 있고, 이미지에 없는 것을 말할 수도 있습니다. 중요한 내용은 확인하세요.",
    "settings": "설정",
    "max_new_tokens": "답변의 최대 길이(토큰)",
    "temperature": "온도(0: 항상 확률이 가장 높은 단어)",
    "seed": "무작위 답변의 시드(빈칸: 매번 다른 답변)",
    "empty": "먼저 이미지를 고른 다음 질문하세요.",
    "begin": "이미지에 대해 질문하거나, 물건 이름을 적어 찾게 하세요.",
    "question": "질문",
    "placeholder": "질문 또는 찾을 것을 영어로: the bus",
    "ask": "질문하기",
    "find": "찾기",
    "stop": "중지",
    "new": "새 대화",
    "you": "나",
    "find_request": "찾기: {phrase}",
    "found": "{phrase}: 왼쪽 {x0}, 위 {y0}, 오른쪽 {x1}, 아래 {y1}",
    "fractions": "이미지의 왼쪽 위를 기준으로 한, 너비와 높이에 대한 비율입니다.",
    "not_found": "{checkpoint}이(가) 찾지 못했습니다. 답변: “{answer}”",
    "summary": "{checkpoint} · {device} {dtype} · {tokens}토큰, {seconds}초",
    "cut": "최대 길이에서 잘림(설정에서 변경)",
    "stopped": "중지함. 모델은 이 답변을 기억하지 않습니다",
    "unknown_words": "imp-nano는 쉬운 영어만 배웠고 이 질문의 단어를 거의 모릅니다. 올바른 답을 기대하지 마세요.",
    "queued": "다른 질문이 먼저입니다. 기다려 주세요.",
    "loading": "{name}을(를) 불러오는 중…",
    "loaded": "이제 {name}이(가) 답합니다. 새 대화를 시작합니다.",
    "model_changed": "이 페이지에서 다른 모델을 선택했습니다. 여기서부터 {name}과(와) 새 대화를 시작합니다.",
    "set_aside": "많은 사람이 이 페이지를 사용하고 있어 모델이 이전 대화를 잊었습니다. "
    "여기서부터 새 대화를 시작합니다.",
    "error_empty": "질문이 비어 있습니다. 이미지에 대해 질문하세요.",
    "error_phrase": "찾을 것을 적으세요. 예: the bus",
    "error_no_image": "아직 이미지가 없습니다. 먼저 이미지를 고르세요.",
    "error_wait": "모델이 아직 답하고 있습니다. 기다리거나 중지를 누르세요.",
    "error_long": "질문이나 대화가 모델이 읽기에 너무 깁니다. 더 짧게 질문하거나 새 대화를 시작하세요.",
    "error_marker": "질문에는 “<image>”를 쓸 수 없습니다. 빼고 질문하세요.",
    "error_file": "이 파일은 이미지로 읽을 수 없습니다. JPEG나 PNG로 저장하여 다시 고르세요.",
    "error_big": "이 파일은 {size} MB입니다. {limit} MB까지 가능하니 더 작은 파일을 고르세요.",
    "error_pixels": "이 이미지는 {limit}백만 화소를 넘습니다. 줄여서 다시 고르세요.",
    "error_gone": "이 이미지가 더 이상 없습니다. 다시 고르세요.",
    "error_settings": "사용할 수 없는 설정이 있습니다. 최대 길이는 1부터 {most}까지의 정수, 온도는 0부터 2까지, "
    "시드는 빈칸 또는 0 이상의 정수입니다.",
    "error_memory": "남은 메모리가 부족합니다. 다른 프로그램을 닫거나 더 작은 모델을 고르세요.",
    "error_not_here": "{name}은(는) 이 컴퓨터에 없습니다. 다음 명령으로 페이지를 시작하면 {size} GB를 내려받습니다: "
    "python -m imp_kit chat-web --checkpoint {name}",
    "error_load": "{name}을(를) 불러오지 못해 {current}이(가) 계속 답합니다. 이유: {reason}",
    "error_no_model": "불러온 모델이 없습니다. 메뉴에서 고르세요.",
    "error_other": "잘되지 않았습니다: {reason}",
}

TEXTS = {"en": ENGLISH, "ja": JAPANESE, "ko": KOREAN}


def say(language: str, name: str, /, **values: object) -> str:
    """The text of this name in a language, a key of LANGUAGES, with its values filled in."""
    return TEXTS[language][name].format(**values)


def preferred(header: str, known: Sequence[str] = tuple(LANGUAGES)) -> str:
    """The first known language of an Accept-Language header (RFC 9110, section 12.5.4), else the first one known.

    The order in which a browser lists them is that of its reader's preference.
    """
    asked = (part.split(";")[0].split("-")[0].strip().lower() for part in header.split(","))
    return next((language for language in asked if language in known), known[0])
