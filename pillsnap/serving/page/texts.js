/**
 * Every sentence of the page, in Korean and in English, and which of the two is shown.
 *
 * A text is found by its key; {name} stands for a value. In the document, `data-text` names the key of an element's
 * text and `data-label` that of its aria-label.
 */

const REMEMBERED = "pillsnap.language";

export const TEXTS = Object.freeze({
  ko: {
    "page.title": "PillSnap – 사진으로 알약 찾기",
    "page.skip": "본문으로 건너뛰기",
    "page.heading": "이 알약은 무엇인가요?",
    "page.lead": "알약 하나를 찍으세요. 앞면과 뒷면을 함께 찍으면 더 정확합니다.",
    "page.language": "언어",
    "page.footer": "프로그램 정보",

    "note.heading": "보조 도구입니다",
    "note.aid": "반드시 알약의 각인·색·모양을 포장이나 의약품 정보와 직접 대조하세요. 이 결과는 그 확인을 대신하지 않습니다.",
    "note.classes": "이 모델이 아는 알약은 {count}종뿐입니다. 목록에 없는 알약도 비슷한 알약으로 보일 수 있습니다.",

    "photos.heading": "사진",
    "side.front": "앞면",
    "side.back": "뒷면",
    "side.optional": "선택",
    "photo.take": "촬영",
    "photo.take.label": "{side} 촬영",
    "photo.choose": "파일 선택",
    "photo.choose.label": "{side} 사진 파일 선택",
    "photo.drop": "끌어다 놓거나 붙여넣기",
    "photo.remove.label": "{side} 사진 지우기",
    "photo.large.label": "{side} 사진 크게 보기",
    "photo.alt": "{side}: 전송되는 정사각형 사진",
    "photo.sent": "{width} × {height} · {size} kB",
    "photo.preparing": "사진을 준비하는 중",
    "photo.ready": "{side} 사진이 준비되었습니다. 알약이 정사각형 안에 모두 들어왔는지 확인하세요.",
    "photo.removed": "{side} 사진을 지웠습니다.",
    "photo.small": "원본이 작습니다({width} × {height} px). 더 가까이에서 다시 찍으면 더 정확합니다.",
    "photo.none": "먼저 알약 사진을 넣으세요.",
    "photo.no_file": "사진 파일이 아닙니다. 저장된 사진 파일을 끌어다 놓으세요.",
    "photo.too_many": "사진은 두 장까지입니다. 처음 두 장만 사용했습니다.",
    "photo.privacy": "화면에 보이는 이 정사각형만 전송됩니다. 원본 사진과 위치 정보는 이 기기에 남습니다.",
    "identify": "알약 찾기",
    "identify.again": "다시 찾기",
    "identify.busy": "찾는 중…",

    "camera.heading": "{side} 촬영",
    "camera.guide": "알약 하나를 정사각형 안에 놓고, 각인이 선명할 때 찍으세요.",
    "camera.video": "카메라 화면",
    "camera.shutter": "찍기",
    "camera.app": "카메라 앱 사용",
    "camera.file": "파일 선택",
    "camera.close": "닫기",
    "camera.starting": "카메라를 켜는 중",
    "camera.on": "카메라가 켜졌습니다.",
    "camera.denied": "카메라 사용이 허용되지 않았습니다. 브라우저 설정에서 허용하거나 사진 파일을 선택하세요.",
    "camera.missing": "카메라를 찾지 못했습니다. 사진 파일을 선택하세요.",
    "camera.failed": "카메라를 켜지 못했습니다. 다른 프로그램이 쓰고 있는지 확인하거나 사진 파일을 선택하세요.",

    "answer.heading": "결과",
    "answer.empty": "사진을 넣고 ‘알약 찾기’를 누르면 가장 비슷한 알약 5종이 여기에 나타납니다.",
    "answer.tips": "잘 찍는 방법",
    "answer.tip.one": "알약은 한 번에 하나만, 무늬 없는 바탕 위에 놓으세요.",
    "answer.tip.near": "가까이에서, 각인에 초점을 맞추세요.",
    "answer.tip.light": "빛은 비스듬히, 그림자와 반사는 적게.",
    "answer.sure": "가장 비슷한 알약",
    "answer.sure.next": "각인·색·모양을 실제 알약과 대조한 뒤 사용하세요.",
    "answer.unsure": "확실하지 않습니다",
    "answer.unsure.next": "이 결과에 의지하지 마세요. 포장과 대조하거나 다른 약사에게 확인하세요.",
    "answer.unsure.one": "아래는 참고용 후보입니다. 더 가까이, 더 밝게 다시 찍거나 다른 면을 추가해 보세요.",
    "answer.unsure.two": "아래는 참고용 후보입니다. 더 가까이, 더 밝게 다시 찍어 보세요.",
    "answer.none": "답을 받았지만 후보가 없습니다. 다시 찍어 보세요.",
    "answer.announce": "후보 {count}종을 받았습니다.",
    "answer.both": "앞면과 뒷면을 함께 판단했습니다.",
    "answer.disagree": "두 면의 결과가 서로 다릅니다(앞면: {front}, 뒷면: {back}). 두 사진이 같은 알약인지 확인하세요.",
    "answer.one_side": "{failed} 사진은 읽지 못해 {used} 사진만으로 답했습니다.",
    "answer.rank": "{rank}위",
    "answer.confidence": "신뢰도",
    "answer.threshold": "세로선({share}) 아래이면 ‘확실하지 않음’으로 표시합니다.",
    "answer.warnings": "사진에 대한 알림",
    "answer.about": "이 결과에 대하여",
    "answer.model": "모델",
    "answer.digest": "모델 파일",
    "answer.preprocessing": "전처리",
    "answer.time": "시간",
    "answer.times": "서버 {server} ms, 전체 {total} ms",
    "answer.side_top": "{side}만 보면",

    "drift.title": "사진 준비 방법이 서버와 다릅니다",
    "drift.next": "결과가 틀릴 수 있습니다. 페이지를 새로 고치세요. 그래도 보이면 관리자에게 알리세요.",

    "key.heading": "API 키가 필요합니다",
    "key.refused": "이 API 키는 받아들여지지 않았습니다",
    "key.next": "관리자에게 받은 키를 입력하세요. 이 탭을 닫으면 지워집니다.",
    "key.label": "API 키",
    "key.save": "사용",
    "key.empty": "키를 입력하세요.",
    "key.saved": "API 키를 이 탭에 저장했습니다.",
    "key.forget": "API 키 지우기",
    "key.forgotten": "API 키를 지웠습니다.",

    "problem.retry": "다시 시도",
    "problem.waiting": "서버가 바쁩니다. {seconds}초 뒤 한 번 더 시도합니다.",
    "problem.reference": "문의 번호 {id}",
    "problem.unknown": "서버가 답하지 못했습니다",
    "problem.unknown.next": "잠시 뒤 다시 시도하세요. 계속되면 문의 번호와 함께 관리자에게 알리세요.",
    "problem.network": "서버에 연결할 수 없습니다",
    "problem.network.next": "네트워크 연결을 확인하고 다시 시도하세요. 사진은 그대로 있습니다.",
    "problem.offline": "이 기기가 오프라인입니다",
    "problem.offline.next": "인터넷에 연결한 뒤 다시 시도하세요. 사진은 그대로 있습니다.",
    "problem.timeout": "시간 안에 답이 오지 않았습니다",
    "problem.timeout.next": "다시 시도하세요. 사진은 그대로 있습니다.",
    "problem.bad_answer": "서버의 답을 이해할 수 없습니다",
    "problem.bad_answer.next": "페이지를 새로 고치세요. 계속되면 관리자에게 알리세요.",
    "problem.overloaded": "서버가 바쁩니다",
    "problem.overloaded.next": "몇 초 뒤 다시 시도하세요. 사진은 그대로 있습니다.",
    "problem.deadline_exceeded": "서버가 제시간에 답하지 못했습니다",
    "problem.deadline_exceeded.next": "다시 시도하세요. 사진은 그대로 있습니다.",
    "problem.not_ready": "서버가 아직 준비되지 않았습니다",
    "problem.not_ready.next": "모델을 불러오는 중일 수 있습니다. 잠시 뒤 다시 시도하세요.",
    "problem.empty": "빈 파일입니다",
    "problem.empty.next": "다른 사진을 선택하거나 다시 찍으세요.",
    "problem.truncated": "사진이 잘려 있습니다",
    "problem.truncated.next": "파일의 끝부분이 없습니다. 다시 복사하거나 다시 찍으세요.",
    "problem.undecodable": "사진으로 열 수 없는 파일입니다",
    "problem.undecodable.next": "다른 사진을 선택하거나 다시 찍으세요.",
    "problem.unsupported_format": "지원하지 않는 사진 형식입니다",
    "problem.unsupported_format.next": "JPEG, PNG 또는 WebP 사진을 선택하세요.",
    "problem.heic": "HEIC 또는 AVIF 사진입니다",
    "problem.heic.next": "휴대폰을 JPEG로 설정하고 다시 찍으세요. iPhone: 설정 > 카메라 > 포맷 > 높은 호환성. Android: 카메라 설정에서 고효율 사진(HEIF) 끄기. 또는 이 사진을 JPEG로 저장한 뒤 선택하세요.",
    "problem.rare_jpeg": "드문 종류의 JPEG입니다",
    "problem.rare_jpeg.next": "일반 JPEG(8비트)로 다시 저장한 뒤 선택하세요.",
    "problem.no_pixel_data": "픽셀 데이터가 없는 사진입니다",
    "problem.no_pixel_data.next": "JPEG 헤더만 있고 내용이 없습니다. 다시 복사하거나 다시 찍으세요.",
    "problem.too_many_bytes": "사진 파일이 너무 큽니다",
    "problem.too_many_bytes.next": "다시 찍거나 더 작은 사진을 선택하세요.",
    "problem.too_many_pixels": "사진의 화소 수가 너무 많습니다",
    "problem.too_many_pixels.next": "카메라 해상도를 낮추거나 더 작은 사진을 선택하세요.",
    "problem.unsupported_browser": "이 브라우저에서는 사진을 준비할 수 없습니다",
    "problem.unsupported_browser.next": "최신 Chrome, Edge, Safari 또는 Firefox를 사용하세요.",
    "problem.disturbed_pixels": "이 브라우저가 추적 방지를 위해 사진의 화소를 바꿉니다",
    "problem.disturbed_pixels.next": "이 페이지에 캔버스 사용을 허용하거나 다른 브라우저를 사용하세요.",
    "problem.encoding_failed": "이 브라우저가 사진을 JPEG로 저장하지 못했습니다",
    "problem.encoding_failed.next": "다른 브라우저를 사용하세요.",

    "warning.small_side": "사진의 한 변이 512픽셀보다 작습니다. 더 가까이에서 찍으세요.",
    "warning.not_jpeg_or_png": "JPEG나 PNG가 아닌 사진입니다.",
    "warning.name_differs": "파일 이름과 내용의 형식이 다릅니다.",
    "warning.alpha": "투명한 부분은 무시했습니다.",
    "warning.animated": "움직이는 사진입니다. 첫 장면만 사용했습니다.",
    "warning.cmyk": "인쇄용 색상의 사진입니다. 색이 다르게 보일 수 있습니다.",
    "warning.more_than_8_bits": "채널당 8비트보다 깊은 사진입니다. 8비트로 줄였습니다.",
    "warning.exif_orientation": "돌려 저장된 사진을 바로 세웠습니다.",
    "warning.damaged": "사진의 일부가 없거나 손상되었습니다. 다시 복사하거나 다시 찍으세요.",
    "warning.too_dark": "너무 어두워 아무것도 보이지 않습니다. 더 밝은 곳에서 다시 찍으세요.",
    "warning.too_bright": "너무 밝아 아무것도 보이지 않습니다. 빛을 줄이고 다시 찍으세요.",
    "warning.blank": "한 가지 색뿐이고 알약이 보이지 않습니다. 알약이 사각형 안에 들어오게 다시 찍으세요.",
    "warning.blurred": "초점이 맞지 않습니다. 각인에 초점을 맞추어 다시 찍으세요.",
    "warning.noise": "잡음뿐이고 형태가 보이지 않습니다. 다시 찍으세요.",
  },
  en: {
    "page.title": "PillSnap – find a pill by its photo",
    "page.skip": "Skip to the content",
    "page.heading": "Which pill is this?",
    "page.lead": "Photograph a single pill. Front and back together give a better answer.",
    "page.language": "Language",
    "page.footer": "About this program",

    "note.heading": "This is an aid",
    "note.aid": "Always compare imprint, colour and shape with the package or the drug reference. An answer here does not replace that check.",
    "note.classes": "This model knows {count} pills only. Any other pill may still look like one of them.",

    "photos.heading": "Photos",
    "side.front": "Front",
    "side.back": "Back",
    "side.optional": "optional",
    "photo.take": "Take photo",
    "photo.take.label": "Take photo: {side}",
    "photo.choose": "Choose file",
    "photo.choose.label": "Choose file: {side}",
    "photo.drop": "or drop or paste a photo",
    "photo.remove.label": "Remove the photo: {side}",
    "photo.large.label": "Look at the photo large: {side}",
    "photo.alt": "{side}: the square photo that is sent",
    "photo.sent": "{width} × {height} · {size} kB",
    "photo.preparing": "Preparing the photo",
    "photo.ready": "{side}: the photo is ready. Check that the whole pill is within the square.",
    "photo.removed": "{side}: the photo is removed.",
    "photo.small": "The original is small ({width} × {height} px). Taken from nearer, the answer is better.",
    "photo.none": "First add a photo of the pill.",
    "photo.no_file": "That is not a photo file. Drop a photo that is saved on this device.",
    "photo.too_many": "Two photos at most. The first two were used.",
    "photo.privacy": "Only the squares shown here are sent. The original photo and its location stay on this device.",
    "identify": "Identify the pill",
    "identify.again": "Identify again",
    "identify.busy": "Looking…",

    "camera.heading": "Take a photo: {side}",
    "camera.guide": "Put a single pill within the square, and take the photo when the imprint is sharp.",
    "camera.video": "What the camera sees",
    "camera.shutter": "Take",
    "camera.app": "Use the camera app",
    "camera.file": "Choose file",
    "camera.close": "Close",
    "camera.starting": "Starting the camera",
    "camera.on": "The camera is on.",
    "camera.denied": "The camera may not be used here. Allow it in the browser's settings, or choose a photo file.",
    "camera.missing": "No camera was found. Choose a photo file.",
    "camera.failed": "The camera did not start. See whether another program uses it, or choose a photo file.",

    "answer.heading": "Answer",
    "answer.empty": "Add a photo and press “Identify the pill”: the five most similar pills appear here.",
    "answer.tips": "How to take a good photo",
    "answer.tip.one": "A single pill, on a plain background.",
    "answer.tip.near": "From near, with the imprint in focus.",
    "answer.tip.light": "Light from the side, few shadows and reflections.",
    "answer.sure": "Most similar pill",
    "answer.sure.next": "Compare imprint, colour and shape with the pill before you rely on it.",
    "answer.unsure": "Not sure",
    "answer.unsure.next": "Do not rely on this answer. Check against the package, or ask a colleague.",
    "answer.unsure.one": "The candidates below are hints only. Try again from nearer, in more light, or add the other side.",
    "answer.unsure.two": "The candidates below are hints only. Try again from nearer and in more light.",
    "answer.none": "The answer has no candidate. Take the photo again.",
    "answer.announce": "{count} candidates have arrived.",
    "answer.both": "Judged from front and back together.",
    "answer.disagree": "The two sides disagree (front: {front}; back: {back}). Are both photos of the same pill?",
    "answer.one_side": "The photo “{failed}” could not be read: this answer comes from “{used}” alone.",
    "answer.rank": "Rank {rank}",
    "answer.confidence": "Confidence",
    "answer.threshold": "Below the vertical line ({share}) an answer counts as “not sure”.",
    "answer.warnings": "Remarks on the photo",
    "answer.about": "About this answer",
    "answer.model": "Model",
    "answer.digest": "Model file",
    "answer.preprocessing": "Preprocessing",
    "answer.time": "Time",
    "answer.times": "{server} ms on the server, {total} ms in all",
    "answer.side_top": "{side} alone",

    "drift.title": "This page prepares photos in another way than the server expects",
    "drift.next": "Answers may be wrong. Reload the page. If this stays, tell whoever runs the server.",

    "key.heading": "An API key is needed",
    "key.refused": "This API key was not accepted",
    "key.next": "Enter the key that you were given. It is forgotten when this tab is closed.",
    "key.label": "API key",
    "key.save": "Use",
    "key.empty": "Enter the key.",
    "key.saved": "The API key is kept in this tab.",
    "key.forget": "Forget the API key",
    "key.forgotten": "The API key is forgotten.",

    "problem.retry": "Try again",
    "problem.waiting": "The server is busy. Trying once more in {seconds} s.",
    "problem.reference": "Reference {id}",
    "problem.unknown": "The server could not answer",
    "problem.unknown.next": "Try again in a while. If it stays, tell whoever runs the server, with the reference.",
    "problem.network": "The server cannot be reached",
    "problem.network.next": "Check the network and try again. Your photos are still here.",
    "problem.offline": "This device is offline",
    "problem.offline.next": "Connect it and try again. Your photos are still here.",
    "problem.timeout": "No answer came in time",
    "problem.timeout.next": "Try again. Your photos are still here.",
    "problem.bad_answer": "The server's answer makes no sense",
    "problem.bad_answer.next": "Reload the page. If it stays, tell whoever runs the server.",
    "problem.overloaded": "The server is busy",
    "problem.overloaded.next": "Try again in a few seconds. Your photos are still here.",
    "problem.deadline_exceeded": "The server did not answer in time",
    "problem.deadline_exceeded.next": "Try again. Your photos are still here.",
    "problem.not_ready": "The server is not ready yet",
    "problem.not_ready.next": "It may be loading its model. Try again in a while.",
    "problem.empty": "The file is empty",
    "problem.empty.next": "Choose another photo or take it again.",
    "problem.truncated": "The photo is cut off",
    "problem.truncated.next": "The end of the file is missing. Copy it again or take it again.",
    "problem.undecodable": "The file cannot be read as a photo",
    "problem.undecodable.next": "Choose another photo, or take it again.",
    "problem.unsupported_format": "This kind of picture is not supported",
    "problem.unsupported_format.next": "Choose a JPEG, PNG or WebP photo.",
    "problem.heic": "This is a HEIC or AVIF photo",
    "problem.heic.next": "Set the phone to JPEG and take it again. iPhone: Settings > Camera > Formats > Most Compatible. Android: Camera > Settings, turn high efficiency pictures (HEIF) off. Or save this photo as JPEG and choose that.",
    "problem.rare_jpeg": "This is a rare kind of JPEG",
    "problem.rare_jpeg.next": "Save it as a usual JPEG (8 bits) and choose that.",
    "problem.no_pixel_data": "The photo has no pixel data",
    "problem.no_pixel_data.next": "The file is a header with nothing behind it. Copy it again or take it again.",
    "problem.too_many_bytes": "The photo file is too large",
    "problem.too_many_bytes.next": "Take it again or choose a smaller one.",
    "problem.too_many_pixels": "The photo has too many pixels",
    "problem.too_many_pixels.next": "Lower the camera's resolution or choose a smaller photo.",
    "problem.unsupported_browser": "This browser cannot prepare the photo",
    "problem.unsupported_browser.next": "Use a current Chrome, Edge, Safari or Firefox.",
    "problem.disturbed_pixels": "This browser changes the pixels of photos, against tracking",
    "problem.disturbed_pixels.next": "Allow this page to use the canvas, or use another browser.",
    "problem.encoding_failed": "This browser could not write the photo as JPEG",
    "problem.encoding_failed.next": "Use another browser.",

    "warning.small_side": "A side of the photo is shorter than 512 pixels. Take it from nearer.",
    "warning.not_jpeg_or_png": "The photo is neither JPEG nor PNG.",
    "warning.name_differs": "The file's name and its content are of different formats.",
    "warning.alpha": "Transparent parts were ignored.",
    "warning.animated": "The picture moves. Only its first frame was used.",
    "warning.cmyk": "The photo has colours for print. They may look different.",
    "warning.more_than_8_bits": "The photo has more than 8 bits a channel. It was reduced to 8.",
    "warning.exif_orientation": "The photo was stored turned, and was put upright.",
    "warning.damaged": "A part of the photo is missing or damaged. Copy it again or take it again.",
    "warning.too_dark": "Too dark: nothing can be seen. Take it again in more light.",
    "warning.too_bright": "Too bright: nothing can be seen. Take it again in less light.",
    "warning.blank": "One even surface: no pill can be seen. Take it again with the pill in the square.",
    "warning.blurred": "Out of focus: no edge is sharp. Focus on the imprint and take it again.",
    "warning.noise": "Nothing but noise: no shape can be seen. Take it again.",
  },
});

let language = remembered() ?? firstOf(navigator.languages ?? [navigator.language]);

export function currentLanguage() {
  return language;
}

/** @param {"ko"|"en"} chosen */
export function chooseLanguage(chosen) {
  language = chosen;
  try {
    localStorage.setItem(REMEMBERED, chosen);
  } catch {
    // storage may be closed: the choice then lasts as long as the page
  }
}

/**
 * @param {string} key
 * @param {Record<string, string|number>} [values]
 * @returns {string}
 */
export function text(key, values = {}) {
  return TEXTS[language][key].replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
}

export function hasText(key) {
  return Object.hasOwn(TEXTS[language], key);
}

/** Writes the language into the document: its `lang`, its title and all that carries a key. */
export function translateDocument() {
  document.documentElement.lang = language;
  document.title = text("page.title");
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = text(element.dataset.text);
  for (const element of document.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", text(element.dataset.label));
  }
}

function firstOf(wanted) {
  const known = wanted.map((tag) => tag.toLowerCase().split("-")[0]).find((tag) => Object.hasOwn(TEXTS, tag));
  return known ?? "en";
}

function remembered() {
  try {
    const kept = localStorage.getItem(REMEMBERED);
    return kept !== null && Object.hasOwn(TEXTS, kept) ? kept : null;
  } catch {
    return null;
  }
}
