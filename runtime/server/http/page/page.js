// The page of sd2rt: it uses the public API, and keeps pictures in this browser.

// English and German, or one text for both; {0} is a value.
const TEXTS = {
	language: ["Language", "Sprache"], task: ["Task", "Aufgabe"],
	text: ["Text"], image: ["Image", "Bild"], inpaint: ["Inpaint", "Maske"], depth: ["Depth", "Tiefe"], upscale: ["Upscale", "Vergrößern"],
	prompt: ["Prompt"], promptHint: ["Describe the picture", "Beschreibe das Bild"],
	negative_prompt: ["Negative prompt", "Negativer Prompt"], negativeHint: ["What to avoid", "Was nicht vorkommen soll"],
	choose: ["Choose an image", "Bild wählen"], dropHint: ["or drop or paste one: PNG, JPEG, WebP", "oder ablegen oder einfügen: PNG, JPEG, WebP"],
	replace: ["Replace", "Ersetzen"], remove: ["Remove", "Entfernen"],
	maskArea: ["Area to repaint", "Bereich, der neu gemalt wird"], maskTools: ["Mask", "Maske"], brush: ["Brush", "Pinsel"], eraser: ["Eraser", "Radierer"],
	undo: ["Undo", "Zurück"], invert: ["Invert", "Umkehren"], clear: ["Clear", "Leeren"], brushSize: ["Size", "Größe"],
	maskHelp: [
		"Paint over what should change. By keyboard: arrows move, space paints, Shift with arrows draws.",
		"Übermale, was sich ändern soll. Mit der Tastatur: Pfeile bewegen, Leertaste malt, Umschalt mit Pfeilen zieht.",
	],
	model: ["Model", "Modell"], size: ["Size", "Größe"], asImage: ["As image", "Wie Bild"], other: ["Other…", "Andere…"], width: ["Width", "Breite"],
	height: ["Height", "Höhe"], n: ["Count", "Anzahl"], sampling: ["Sampling"], strength: ["Strength", "Stärke"], noise_level: ["Noise level", "Rauschen"],
	num_inference_steps: ["Steps", "Schritte"], guidance_scale: ["Guidance"], sampler: ["Sampler"], schedule: ["Schedule"], standard: ["Default", "Vorgabe"],
	none: ["None", "Keine"], seed: ["Seed"], random: ["Random", "Zufall"], reuse: ["Reuse", "Wieder"], loras: ["LoRAs"],
	scaleOf: ["Scale of {0}", "Gewicht von {0}"], also: ["Also from the recipe: {0}", "Auch aus dem Rezept: {0}"],
	generate: ["Generate", "Erzeugen"], shortcut: ["Ctrl + Enter", "Strg + Enter"], cancel: ["Cancel", "Abbrechen"], picture: ["Picture", "Bild"],
	emptyLead: ["No picture yet", "Noch kein Bild"],
	emptyHint: ["Describe one, or drop a PNG of sd2rt to read its recipe.", "Beschreibe eines, oder lege ein PNG von sd2rt ab, um sein Rezept zu lesen."],
	download: ["Download", "Speichern"], again: ["Make again", "Noch einmal"],
	use: ["Use settings", "Einstellungen nehmen"], sendTo: ["Continue with", "Weiter mit"], delete: ["Delete", "Löschen"],
	history: ["History", "Verlauf"], wipe: ["Delete all", "Alle löschen"],
	historyEmpty: ["The last {0} pictures are kept in this browser, up to {1} MB.", "Die letzten {0} Bilder bleiben in diesem Browser, bis {1} MB."],
	wipeSure: ["Delete all pictures in this browser?", "Alle Bilder in diesem Browser löschen?"],
	noHistory: ["This browser keeps no history for this page.", "Dieser Browser behält für diese Seite keinen Verlauf."],
	close: ["Close", "Schließen"], dropAnywhere: ["Drop an image, or a PNG with its recipe", "Bild ablegen, oder ein PNG mit Rezept"],
	keyTitle: ["This server asks for a key", "Dieser Server verlangt einen Schlüssel"], key: ["API key", "API-Schlüssel"],
	keyNote: ["Kept until this tab is closed.", "Bleibt, bis dieser Tab geschlossen wird."], continue: ["Continue", "Weiter"],
	keyMissing: ["The server asks for a key: reload to enter it.", "Der Server verlangt einen Schlüssel: lade die Seite neu."],
	connecting: ["Connecting", "Verbinde"], ready: ["Ready", "Bereit"], starting: ["Loading models", "Lädt Modelle"], draining: ["Shutting down", "Fährt herunter"],
	down: ["Restarting", "Startet neu"], failed: ["Failed", "Ausgefallen"], offline: ["Offline"],
	startingLong: ["The server is loading its models.", "Der Server lädt seine Modelle."],
	drainingLong: ["The server is shutting down: it takes nothing new.", "Der Server fährt herunter: er nimmt nichts Neues an."],
	downLong: ["The server's worker is being started again.", "Der Worker des Servers wird neu gestartet."],
	offlineLong: ["No connection to the server. Trying again…", "Keine Verbindung zum Server. Neuer Versuch läuft…"],
	queued: ["Waiting in the queue", "Wartet in der Schlange"], next: ["Next in the queue", "Als Nächstes an der Reihe"], ahead: ["{0} before it in the queue", "{0} davor in der Schlange"],
	step: ["Step {0} of {1}", "Schritt {0} von {1}"], left: ["about {0} left", "noch etwa {0}"], finishing: ["Finishing", "Wird fertiggestellt"],
	done: ["Finished: {0}", "Fertig: {0}"], cancelled: ["Cancelled", "Abgebrochen"], gone: ["The server no longer has this job.", "Der Server hat diesen Auftrag nicht mehr."],
	noMask: ["Paint the area that should change.", "Übermale den Bereich, der sich ändern soll."], noImage: ["Choose an image first.", "Wähle zuerst ein Bild."],
	badImage: ["{0} is not an image that this browser can read.", "{0} ist kein Bild, das dieser Browser lesen kann."],
	recipeRead: ["Recipe of {0} read.", "Rezept von {0} gelesen."], recipeNotes: ["Not taken over: {0}.", "Nicht übernommen: {0}."],
	recipeImage: ["It was made from an image, which the file does not hold: add it.", "Es entstand aus einem Bild, das nicht in der Datei ist: füge es hinzu."],
	asSource: ["Use as image", "Als Bild nehmen"], mask: ["Mask: white is repainted", "Maske: Weißes wird neu gemalt"], depthMap: ["Depth map", "Tiefenkarte"],
};

const TASKS = { text: "text-to-image", image: "image-to-image", inpaint: "inpainting", depth: "depth-to-image", upscale: "upscaling" };
// Fields of the form have the names of the API's.
const FIELDS = ["prompt", "negative_prompt", "model", "size", "num_inference_steps", "guidance_scale", "sampler", "schedule", "seed", "strength", "noise_level"];
// Fields of a recipe that the form does not show, but sends.
const EXTRA = ["prompt_syntax", "clip_skip", "guidance_rescale", "rng", "paste_blur"];
const MOST_PICTURES = 100, MOST_BYTES = 200e6;

const ui = new Proxy({}, { get: (_, id) => document.getElementById(id) });
const all = (selector) => [...document.querySelectorAll(selector)];
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
let language = localStorage.getItem("sd2rt.language") ?? (navigator.language.startsWith("de") ? "de" : "en");

function t(key, ...values) {
	const [english, german = english] = TEXTS[key] ?? [key];
	return (language === "de" ? german : english).replace(/\{(\d)\}/g, (_, index) => values[index]);
}

function make(tag, properties, ...children) {
	const element = Object.assign(document.createElement(tag), properties);
	element.append(...children);
	return element;
}

function show(id, visible) {
	ui[id].hidden = !visible;
}

function say(id, text) {
	ui[id].textContent = text;
	show(id, text);
}

// The server

class Failure extends Error {
	constructor(message, facts) {
		super(message);
		Object.assign(this, facts);
	}
}

let key = sessionStorage.getItem("sd2rt.key") ?? "", state = "connecting", asking = null;

async function request(path, options = {}) {
	for (;;) {
		const used = key;
		let answer;
		try {
			answer = await fetch(path, { ...options, cache: "no-store", headers: used ? { authorization: `Bearer ${used}` } : {} });
		} catch (error) {
			if (error.name === "AbortError") throw error;
			setState("offline");
			throw new Failure(t("offlineLong"));
		}
		if (answer.ok) return answer;
		const { error } = await answer.json().catch(() => ({}));
		if (answer.status !== 401) throw new Failure(error?.message ?? `HTTP ${answer.status}`, { status: answer.status, param: error?.param });
		// Another request may have asked for the key meanwhile.
		if (used === key && !(await askKey(used && error.message))) throw new Failure(t("keyMissing"), { status: 401 });
	}
}

function askKey(message) {
	asking ??= new Promise((done) => {
		say("keyError", message);
		ui.key.value = "";
		const end = (value) => {
			ui.keyDialog.onclose = asking = null;
			ui.keyDialog.close();
			key = value;
			sessionStorage.setItem("sd2rt.key", key);
			done(Boolean(key));
		};
		ui.keyForm.onsubmit = (event) => {
			event.preventDefault();
			end(ui.key.value.trim());
		};
		ui.keyCancel.onclick = ui.keyDialog.onclose = () => end("");
		ui.keyDialog.showModal();
		ui.key.focus();
	});
	return asking;
}

function setState(now) {
	state = ui.dot.className = now;
	ui.serverText.textContent = t(now);
	say("banner", TEXTS[`${now}Long`] ? t(`${now}Long`) : "");
	updateButton();
}

async function poll() {
	for (let refused = false; ; ) {
		if (!document.hidden) {
			try {
				const answer = await fetch("health", { cache: "no-store" });
				setState((await answer.json()).status);
			} catch {
				setState("offline");
			}
			if (!models.length && !refused && ["ready", "draining", "down"].includes(state)) {
				await loadModels().catch((error) => {
					refused = error.status === 401;
					formError(refused ? error : null);
				});
			}
		}
		await sleep(state === "ready" ? 4000 : 1500);
	}
}

async function* events(stream) {
	const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
	for (let rest = ""; ; ) {
		const { value, done } = await reader.read();
		if (done) return;
		rest += value;
		for (let end; (end = rest.indexOf("\n\n")) >= 0; rest = rest.slice(end + 2)) {
			const event = Object.fromEntries(rest.slice(0, end).split("\n").map((line) => line.split(/: (.*)/, 2)));
			if (event.data) yield { name: event.event, data: JSON.parse(event.data) };
		}
	}
}

// The form

let models = [], options = null, mode = "text", extra = {};
const can = (name) => models.some((each) => TASKS[name] in each.tasks);
const model = () => models.find((each) => each.id === ui.model.value);
const numbers = (size) => size.split("x").map(Number);

async function loadModels() {
	const [first, second] = await Promise.all([request("v1/models"), request("v1/options")]);
	const { data } = await first.json();
	options = await second.json();
	models = data.map((each) => ({ id: each.id, ...each.sd2rt }));
	const { max_images, max_prompt, max_steps } = options.limits;
	ui.n.max = max_images;
	ui.prompt.maxLength = ui.negative_prompt.maxLength = max_prompt;
	ui.num_inference_steps.max = max_steps;
	all("[data-for=num_inference_steps]")[0].max = Math.min(max_steps, 100);
	setMode(can(mode) ? mode : Object.keys(TASKS).find(can));
	for (const job of await store("jobs", "getAll").catch(() => [])) start(job);
}

function fillSelect(select, pairs, value = select.value) {
	select.replaceChildren(...pairs.map(([each, label]) => make("option", { value: each, textContent: label })));
	select.value = pairs.some(([each]) => each === value) ? value : pairs[0][0];
}

function setMode(name, chosen) {
	// By default, an image's own size or the model's.
	if ((name === "text") !== (mode === "text")) ui.size.value = "";
	mode = name;
	const focused = document.activeElement.name === "mode";
	ui.modes.replaceChildren(ui.modes.firstElementChild, ...Object.keys(TASKS).filter(can).map((each) =>
		make("label", {}, make("input", { type: "radio", name: "mode", checked: each === mode, onchange: () => setMode(each) }), make("span", { textContent: t(each) }))));
	if (focused) ui.modes.querySelector(":checked").focus();
	fillSelect(ui.model, models.filter(({ tasks }) => TASKS[mode] in tasks).map(({ id }) => [id, id]), chosen ?? models.find(({ kind }) => kind === TASKS[mode])?.id);
	show("source", mode !== "text");
	for (const id of ["mask", "tools", "maskHelp"]) show(id, mode === "inpaint");
	setModel();
}

function setModel() {
	const chosen = model(), defaults = chosen.tasks[TASKS[mode]];
	ui.num_inference_steps.value = Math.min(defaults.steps, options.limits.max_steps);
	for (const id of ["guidance_scale", "strength", "noise_level"]) ui[id].value = defaults[id] ?? "";
	for (const id of ["strength", "noise_level"]) show(`${id}Field`, defaults[id] !== null);
	show("sizeField", mode !== "upscale");
	fillSelect(ui.size, [...(mode === "text" ? [] : [["", t("asImage")]]), ...sizesOf(chosen).map((each) => [each, each.replace("x", "×")]), ["other", t("other")]]);
	for (const [index, id] of ["width", "height"].entries()) {
		Object.assign(ui[id], { min: chosen.smallest_side, max: chosen.largest_side, step: chosen.size_multiple });
		ui[id].value ||= numbers(chosen.size)[index];
	}
	fillSelect(ui.sampler, [["", `${t("standard")} (${chosen.sampler})`], ...options.samplers.map(({ name }) => [name, name])]);
	setSchedules();
	show("loras", chosen.loras.length);
	setLoras(readLoras());
	changed();
	fitSource();
}

function side(chosen, value, multiple = chosen.size_multiple) {
	return Math.max(chosen.smallest_side, Math.min(chosen.largest_side, Math.round(value / multiple) * multiple));
}

// Usual shapes of the model's area, twice its own; as trained.
function sizesOf(chosen) {
	const [w, h] = numbers(chosen.size);
	const shapes = [w / h, 3 / 2, 2 / 3, 4 / 3, 3 / 4, 16 / 9, 9 / 16].map((ratio) => [Math.sqrt(w * h * ratio), Math.sqrt((w * h) / ratio)]);
	return [...new Set([...shapes, [2 * w, 2 * h]].map((size) => size.map((each) => side(chosen, each, 64)).join("x")))];
}

function setSchedules(value) {
	const name = ui.sampler.value || model().sampler, { schedules } = options.samplers.find((each) => each.name === name);
	fillSelect(ui.schedule, [["", t(schedules.length ? "standard" : "none")], ...schedules.map((each) => [each, each])], value);
	ui.schedule.disabled = !schedules.length;
}

function setLoras(chosen) {
	ui.loraList.replaceChildren(...model().loras.map((name, index) => {
		const found = chosen.find((each) => each.name === name);
		const scale = make("input", { type: "number", step: 0.05, value: found?.scale ?? 1, ariaLabel: t("scaleOf", name) });
		const check = make("input", { type: "checkbox", id: `lora${index}`, value: name, checked: Boolean(found) });
		return make("div", { className: "lora" }, check, make("label", { htmlFor: check.id, textContent: name }), scale);
	}));
}

function readLoras() {
	return [...ui.loraList.children].filter(({ firstChild }) => firstChild.checked)
		.map(({ firstChild, lastChild }) => ({ name: firstChild.value, scale: Number(lastChild.value) }));
}

function chosenSize() {
	return ui.size.value === "other" ? `${ui.width.value}x${ui.height.value}` : ui.size.value;
}

function read() {
	const recipe = { mode, ...extra, loras: readLoras() };
	for (const name of FIELDS) if (!ui[`${name}Field`]?.hidden) recipe[name] = ui[name].value.trim();
	if (recipe.size !== undefined) recipe.size = mode !== "text" && source ? `${ui.base.width}x${ui.base.height}` : chosenSize();
	return recipe;
}

function fill(recipe) {
	setMode(can(recipe.mode) ? recipe.mode : mode, recipe.model);
	ui.seed.value = ui.prompt.value = ui.negative_prompt.value = ui.sampler.value = "";
	for (const name of FIELDS) if (name !== "model" && recipe[name] != null) ui[name].value = recipe[name];
	if (!ui.sampler.value) ui.sampler.value = "";
	setSchedules(recipe.schedule ?? "");
	if (recipe.size && !ui.size.value) {
		ui.size.value = "other";
		[ui.width.value, ui.height.value] = numbers(recipe.size);
	} else if (!recipe.size) ui.size.selectedIndex = 0;
	setLoras(recipe.loras);
	extra = Object.fromEntries(EXTRA.filter((name) => name in recipe).map((name) => [name, recipe[name]]));
	ui.n.value = 1;
	changed();
	fitSource();
}

// Update what depends on the fields.
function changed() {
	for (const range of all("[data-for]")) range.value = ui[range.dataset.for].value;
	show("custom", mode !== "upscale" && ui.size.value === "other");
	ui.random.disabled = !ui.seed.value;
	const words = Object.entries(extra).map(([name, value]) => `${name} ${value}`).join(", ");
	ui.extraText.textContent = t("also", words);
	show("extra", words);
	formError(null);
}

function formError(error) {
	for (const marked of all("#form [aria-invalid]")) marked.removeAttribute("aria-invalid");
	say("formError", error?.message ?? "");
	const field = error?.param && (ui[error.param] ?? (error.param === "mask_image" && ui.mask));
	if (!field) return;
	if (field.closest("details")) ui.more.open = true;
	if (field.labels?.length) field.ariaInvalid = "true";
	field.focus();
}

function updateButton() {
	ui.generate.disabled = state !== "ready" || !models.length || sending;
}

// The source image and its mask

let source = null, strokes = [], erasing = false, stroke = null, cursor = [0.5, 0.5];

async function setSource(blob, name = "") {
	try {
		source = await createImageBitmap(blob);
	} catch {
		notify(t("badImage", name));
		return false;
	}
	strokes = [];
	changed();
	fitSource();
	return true;
}

// The size at which the server gets the image.
function targetSize(chosen) {
	const { width: w, height: h } = source;
	if (mode === "upscale") {
		const scale = Math.min(1, (2 * options.limits.max_side) / chosen.upscale_factor / Math.max(w, h));
		return [w, h].map((each) => Math.max(1, Math.floor(each * scale)));
	}
	if (chosenSize()) return numbers(chosenSize()).map((each) => Math.max(1, Math.min(4096, each || 1)));
	const [nativeW, nativeH] = numbers(chosen.size), area = nativeW * nativeH;
	if (side(chosen, w) === w && side(chosen, h) === h && w * h <= 4 * area) return [w, h];
	return [side(chosen, Math.sqrt((area * w) / h)), side(chosen, Math.sqrt((area * h) / w))];
}

function fitSource() {
	show("editor", source);
	show("image", !source);
	if (!source || mode === "text") return;
	const chosen = model(), [w, h] = targetSize(chosen), { base, mask } = ui;
	for (const canvas of [base, mask]) if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
	const scale = Math.max(w / source.width, h / source.height), context = base.getContext("2d");
	const [width, height] = [source.width * scale, source.height * scale];
	context.imageSmoothingQuality = "high";
	context.clearRect(0, 0, w, h);
	context.drawImage(source, (w - width) / 2, (h - height) / 2, width, height);
	base.style.width = `${Math.min(4 * w, 384, (384 * w) / h)}px`;
	redraw();
	const sizes = [[source.width, source.height], [w, h]].map((size) => size.join("×"));
	if (mode === "upscale") sizes.push([w, h].map((each) => each * chosen.upscale_factor).join("×"));
	ui.sourceFacts.textContent = [...new Set(sizes)].join(" → ");
}

// As a fraction of the shorter side.
const brush = () => Number(ui.brushSize.value) / 100;

// Points are fractions of the image, so that strokes outlive a change of its size.
function paint({ points, width, erase, bitmap }, from = 1) {
	const { width: w, height: h } = ui.mask, context = ui.mask.getContext("2d");
	context.fillStyle = context.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--accent");
	if (!points) {
		context.globalCompositeOperation = bitmap ? "source-over" : "source-out";
		context.fillRect(0, 0, w, h);
		context.globalCompositeOperation = "destination-out";
		if (bitmap) context.drawImage(bitmap, 0, 0, w, h);
		return;
	}
	context.globalCompositeOperation = erase ? "destination-out" : "source-over";
	context.lineWidth = width * Math.min(w, h);
	context.lineCap = context.lineJoin = "round";
	context.beginPath();
	context.moveTo(points[from - 1][0] * w, points[from - 1][1] * h);
	// A line of no length would have no ends either.
	for (const [x, y] of points.length > from ? points.slice(from) : points.slice(-1)) context.lineTo(x * w + 0.01, y * h);
	context.stroke();
}

function redraw() {
	ui.mask.getContext("2d").clearRect(0, 0, ui.mask.width, ui.mask.height);
	for (const each of strokes) paint(each);
	ui.undo.disabled = ui.clear.disabled = !strokes.length;
}

function begin(point) {
	stroke = { points: [point], width: brush(), erase: erasing };
	strokes.push(stroke);
	paint(stroke);
	ui.undo.disabled = ui.clear.disabled = false;
	formError(null);
}

function extend(point) {
	stroke.points.push(point);
	paint(stroke, stroke.points.length - 1);
}

function ring(point) {
	show("ring", point);
	if (!point) return;
	const { width, height } = ui.mask.getBoundingClientRect(), size = `${brush() * Math.min(width, height)}px`;
	Object.assign(ui.ring.style, { left: `${point[0] * 100}%`, top: `${point[1] * 100}%`, width: size, height: size });
}

function setUpMask() {
	const { mask } = ui;
	const at = (event) => {
		const box = mask.getBoundingClientRect();
		return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
	};
	mask.onpointerdown = (event) => {
		if (event.button || !event.isPrimary) return;
		mask.setPointerCapture(event.pointerId);
		begin(at(event));
	};
	mask.onpointermove = (event) => {
		if (!event.isPrimary) return;
		ring(at(event));
		if (stroke) for (const each of event.getCoalescedEvents?.() ?? [event]) extend(at(each));
	};
	mask.onpointerup = mask.onpointercancel = () => {
		stroke = null;
		redraw();
	};
	mask.onpointerleave = mask.onblur = () => ring(null);
	mask.onfocus = () => ring(mask.matches(":focus-visible") && cursor);
	mask.onkeydown = (event) => {
		const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key], before = cursor;
		if (move) {
			const sides = [mask.width, mask.height], step = (brush() * Math.min(...sides)) / 2;
			cursor = cursor.map((value, index) => Math.max(0, Math.min(1, value + (move[index] * step) / sides[index])));
		} else if (event.key === "z" && (event.ctrlKey || event.metaKey)) ui.undo.click();
		else if (event.key !== " ") return;
		event.preventDefault();
		if (event.key === " " || (move && event.shiftKey)) {
			begin(before);
			extend(cursor);
			stroke = null;
		}
		ring(cursor);
	};
	ui.brush.onclick = ui.eraser.onclick = (event) => {
		erasing = event.currentTarget === ui.eraser;
		ui.brush.ariaPressed = String(!erasing);
		ui.eraser.ariaPressed = String(erasing);
	};
	const edit = (button, change) => (button.onclick = () => {
		change();
		redraw();
	});
	edit(ui.undo, () => strokes.pop());
	edit(ui.clear, () => (strokes = []));
	edit(ui.invert, () => strokes.push({}));
}

const asBlob = (canvas) => new Promise((done) => canvas.toBlob(done, "image/png"));

// As OpenAI's API has it: what is transparent is repainted. Null if nothing is painted.
async function maskBlob() {
	const { width, height } = ui.mask, pixels = ui.mask.getContext("2d").getImageData(0, 0, width, height);
	let any = false;
	for (let index = 3; index < pixels.data.length; index += 4) {
		const inside = pixels.data[index] >= 128;
		any ||= inside;
		pixels.data.fill(0, index - 3, index);
		pixels.data[index] = inside ? 0 : 255;
	}
	const canvas = make("canvas", { width, height });
	canvas.getContext("2d").putImageData(pixels, 0, 0);
	return any ? asBlob(canvas) : null;
}

// Jobs

const jobs = new Map();
let selected = null, sending = false, failure = "";

function body({ recipe, image, mask }, n) {
	const form = new FormData(), { mode: _, loras, ...fields } = recipe;
	if (loras.length) fields.loras = JSON.stringify(loras);
	for (const [name, value] of Object.entries({ ...fields, n, previews: true })) if (value !== "" || name === "prompt") form.append(name, value);
	if (image) form.append("image", image, "image.png");
	if (mask) form.append("mask", mask, "mask.png");
	return form;
}

async function generate() {
	if (ui.generate.disabled) return;
	formError(null);
	sending = true;
	updateButton();
	try {
		const job = { recipe: read(), at: Date.now() };
		if (mode !== "text") {
			if (!source) throw new Failure(t("noImage"), { param: "image" });
			job.image = await asBlob(ui.base);
		}
		if (mode === "inpaint" && !(job.mask = await maskBlob())) throw new Failure(t("noMask"), { param: "mask" });
		const answer = await request("v1/jobs", { method: "POST", body: body(job, ui.n.value) });
		job.id = (await answer.json()).id;
		store("jobs", "put", { ...job }).catch(() => {});
		start(job);
		select(job);
		announce(t("queued"));
		if (matchMedia("(max-width: 759px)").matches) ui.stage.scrollIntoView();
	} catch (error) {
		formError(error);
	} finally {
		sending = false;
		updateButton();
	}
}

function start(job) {
	if (jobs.has(job.id)) return;
	jobs.set(job.id, Object.assign(job, { step: 0, heard: 0, abort: new AbortController() }));
	watch(job);
	if (!selected) select(job);
	renderList();
}

async function watch(job) {
	const { signal } = job.abort;
	for (let pause = 500; !signal.aborted; pause = Math.min(2 * pause, 8000)) {
		try {
			const answer = await request(`v1/jobs/${job.id}/events`, { signal });
			for await (const { name, data } of events(answer.body)) {
				pause = 500;
				if (name === "progress") await progress(job, data);
				else if (name === "deleted") return drop(job);
				else return await finish(job, data);
			}
		} catch (error) {
			if (signal.aborted) return;
			// Others may pass: the server starts again, or the network comes back.
			if ([401, 404].includes(error.status)) return drop(job, error.status === 404 ? t("gone") : error.message);
		}
		await sleep(pause);
	}
}

async function progress(job, data) {
	const now = performance.now();
	if (data.step > job.step) {
		job.first ??= { step: data.step, at: now };
		if (data.step > job.first.step) job.rest = ((now - job.first.at) / (data.step - job.first.step)) * (data.steps - data.step);
	}
	Object.assign(job, { step: data.step, steps: data.steps, position: data.queue_position });
	if (data.preview_b64) job.preview = `data:image/png;base64,${data.preview_b64}`;
	await fetchDepth(job, data);
	const quarter = job.steps ? Math.floor((4 * job.step) / job.steps) : 0;
	if (selected === job) {
		renderRunning();
		if (quarter > job.heard && quarter < 4) announce(t("step", job.step, job.steps));
	}
	job.heard = quarter;
	updateThumb(job);
}

async function fetchDepth(job, data) {
	if (!data.depth_map || job.depth) return;
	job.depth = await (await request(data.depth_map.slice(1))).blob();
	if (selected === job) renderInputs();
}

async function finish(job, data) {
	if (data.status === "failed") return drop(job, data.error.message);
	await fetchDepth(job, data);
	const records = [];
	for (const [index, { path, seed, size }] of data.images.entries()) {
		const blob = await (await request(path.slice(1), { signal: job.abort.signal })).blob();
		// A seed of the request's may be too large for a number here.
		const exact = String(job.recipe.seed ? BigInt(job.recipe.seed) + BigInt(index) : seed);
		const { image, mask, depth } = job;
		records.push({ key: `${job.id}/${index}`, at: job.at - index / 100, blob, image, mask, depth, made: { size, sampler: data.sampler }, recipe: { ...job.recipe, seed: exact } });
	}
	const watched = selected === job;
	await keep(records);
	forget("jobs", jobs, job.id);
	if (watched) select(records[0]);
	else renderList();
	if (data.warnings?.length) notify(data.warnings.join(" "));
	announce(t("done", job.recipe.prompt));
}

// A job that has ended without a picture; without a message, because it was cancelled.
function drop(job, message = "") {
	forget("jobs", jobs, job.id);
	if (selected === job) select(newest(), message);
	else if (message) notify(message);
	if (!message) announce(t("cancelled"));
	renderList();
}

async function cancel(job) {
	job.abort.abort();
	drop(job);
	ui.prompt.focus();
	await request(`v1/jobs/${job.id}`, { method: "DELETE" }).catch((error) => error.status === 404 || notify(error.message));
}

// The history, newest first

let pictures = new Map();
const urls = new Map();
const database = new Promise((done, failed) => {
	const opening = indexedDB.open("sd2rt", 1);
	opening.onupgradeneeded = () => {
		opening.result.createObjectStore("pictures", { keyPath: "key" });
		opening.result.createObjectStore("jobs", { keyPath: "id" });
	};
	opening.onsuccess = () => done(opening.result);
	opening.onerror = () => failed(opening.error);
});

async function store(name, action, value) {
	const asked = (await database).transaction(name, "readwrite").objectStore(name)[action](value);
	return new Promise((done, failed) => {
		asked.onsuccess = () => done(asked.result);
		asked.onerror = () => failed(asked.error);
	});
}

function forget(name, from, id) {
	const { blob, image, mask, depth } = from.get(id);
	from.delete(id);
	store(name, "delete", id).catch(() => {});
	// The images that pictures of one request share are made again when they are shown.
	if (blob) for (const each of [blob, image, mask, depth]) {
		URL.revokeObjectURL(urls.get(each));
		urls.delete(each);
	}
}

async function keep(records) {
	for (const record of records) await store("pictures", "put", record).catch(() => notify(t("noHistory")));
	order([...records, ...pictures.values()]);
	let total = 0;
	for (const [index, { key: each, blob, image, mask, depth }] of [...pictures.values()].entries()) {
		for (const part of [blob, image, mask, depth]) total += part?.size ?? 0;
		if (index && (index >= MOST_PICTURES || total > MOST_BYTES)) forget("pictures", pictures, each);
	}
	renderList();
}

function order(records) {
	pictures = new Map(records.sort((a, b) => b.at - a.at).map((each) => [each.key, each]));
}

const newest = () => pictures.values().next().value ?? null;

function urlOf(blob) {
	if (!urls.has(blob)) urls.set(blob, URL.createObjectURL(blob));
	return urls.get(blob);
}

// What is shown

function select(item, message = "") {
	[selected, failure] = [item, message];
	render();
	renderList();
}

const running = () => jobs.has(selected?.id);

// Small pictures are shown up to four times as large.
function setPicture(src, size, alt) {
	const [w, h] = numbers(size), { picture } = ui;
	Object.assign(picture, { src, alt });
	Object.assign(picture.style, { width: `min(100%, ${Math.max(w, Math.min(4 * w, (640 * w) / Math.max(w, h)))}px, ${(66 * w) / h}vh)`, aspectRatio: `${w}/${h}` });
	picture.classList.toggle("rough", running());
	show("picture", true);
}

function render() {
	const record = running() ? null : selected;
	say("failure", failure);
	show("running", running());
	show("about", record);
	show("empty", !selected);
	show("picture", false);
	ui.reuse.disabled = !record;
	document.title = "sd2rt";
	if (record) {
		const { recipe, made, blob } = record, { prompt, seed } = recipe;
		setPicture(urlOf(blob), made.size, prompt || t("picture"));
		Object.assign(ui.download, { href: ui.picture.src, download: `sd2rt-${seed}.png` });
		say("caption", prompt);
		const facts = { ...recipe, ...made, size: made.size.replace("x", "×"), loras: recipe.loras.map(({ name, scale }) => `${name} ${scale}`).join(", ") };
		ui.recipe.replaceChildren(...[...FIELDS.slice(1), "loras"].filter((name) => facts[name]).map((name) =>
			make("div", {}, make("dt", { textContent: t(name) }), make("dd", { textContent: facts[name] }))));
		ui.send.replaceChildren(make("span", { id: "sendLabel", className: "note", textContent: t("sendTo") }), ...Object.keys(TASKS).slice(1).filter(can).map((name) =>
			make("button", { type: "button", textContent: t(name), onclick: () => sendTo(name) })));
		show("send", ui.send.children.length > 1);
	} else if (selected) renderRunning();
	renderInputs();
}

function renderRunning() {
	const job = selected, bar = ui.progress, parts = [];
	if (job.preview) setPicture(job.preview, job.recipe.size ?? "512x512", job.recipe.prompt || t("picture"));
	if (job.step) {
		bar.value = job.step / job.steps;
		parts.push(job.step < job.steps ? t("step", job.step, job.steps) : t("finishing"));
		if (job.rest > 1500) parts.push(t("left", job.rest > 90000 ? `${Math.round(job.rest / 60000)} min` : `${Math.round(job.rest / 1000)} s`));
		document.title = `${Math.round(100 * bar.value)} % · sd2rt`;
	} else {
		bar.removeAttribute("value");
		parts.push(job.position > 1 ? t("ahead", job.position - 1) : t(job.position ? "next" : "queued"));
	}
	ui.progressText.textContent = parts.join(" · ");
}

function renderInputs() {
	const { image, mask, depth: depthMap } = selected ?? {};
	ui.inputs.replaceChildren(...Object.entries({ image, mask, depthMap }).filter(([, blob]) => blob).map(([name, blob]) =>
		make("figure", {}, make("img", { src: urlOf(blob), alt: "" }), make("figcaption", { textContent: t(name) }))));
}

function renderList() {
	const items = [...[...jobs.values()].reverse(), ...pictures.values()], focused = ui.list.contains(document.activeElement);
	ui.list.replaceChildren(...items.map((item) => {
		const button = make("button", { type: "button", title: item.recipe.prompt, ariaLabel: item.recipe.prompt || t("picture"), onclick: () => select(item) });
		const current = item === (selected ?? items[0]);
		if (item === selected) button.ariaCurrent = "true";
		button.tabIndex = current ? 0 : -1;
		if (item.blob) button.append(make("img", { src: urlOf(item.blob), alt: "", loading: "lazy" }));
		else item.button = button;
		return make("li", {}, button);
	}));
	jobs.forEach(updateThumb);
	if (focused) ui.list.querySelector("[aria-current]")?.focus();
	show("wipe", pictures.size);
	ui.historyCount.textContent = items.length || "";
	say("historyEmpty", items.length ? "" : t("historyEmpty", MOST_PICTURES, MOST_BYTES / 1e6));
}

function updateThumb({ button, preview, step, steps }) {
	button.replaceChildren(preview ? make("img", { src: preview, alt: "" }) : `${steps ? Math.round((100 * step) / steps) : 0} %`);
}

function announce(text) {
	ui.live.textContent = text;
}

let closing = 0;
function notify(text, label = "", action = null) {
	ui.noticeText.textContent = text;
	say("noticeAction", label);
	ui.noticeAction.onclick = () => {
		show("notice", false);
		action();
	};
	show("notice", true);
	clearTimeout(closing);
	closing = setTimeout(() => show("notice", false), 12000);
}

// Recipes in PNG files

async function pngTexts(file) {
	const data = new DataView(await file.arrayBuffer()), texts = {};
	const latin1 = (bytes) => new TextDecoder("latin1").decode(bytes);
	if (data.byteLength < 8 || data.getUint32(0) !== 0x89504e47) return texts;
	for (let at = 8, size; at + 12 <= data.byteLength; at += 12 + size) {
		size = data.getUint32(at);
		if (at + 12 + size > data.byteLength) break;
		const name = latin1(new Uint8Array(data.buffer, at + 4, 4)), chunk = new Uint8Array(data.buffer, at + 8, size), end = chunk.indexOf(0);
		const word = latin1(chunk.subarray(0, end)), international = name === "iTXt";
		if (!["tEXt", "iTXt", "zTXt"].includes(name) || !["parameters", "sd2rt"].includes(word)) continue;
		const packed = international ? chunk[end + 1] : name === "zTXt";
		let content = chunk.subarray(end + { tEXt: 1, zTXt: 2, iTXt: 3 }[name]);
		// Language and translated keyword, each up to a zero.
		if (international) for (let skip = 0; skip < 2; skip++) content = content.subarray(content.indexOf(0) + 1);
		if (packed) content = await new Response(new Blob([content]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer().catch(() => "");
		texts[word] = content && (international ? new TextDecoder().decode(content) : latin1(content));
	}
	return texts;
}

// AUTOMATIC1111's text, which sd2rt writes too.
function parseParameters(text) {
	const lines = text.trim().split("\n"), last = lines.findLastIndex((line) => line.startsWith("Steps: "));
	const [prompt, negative = ""] = lines.slice(0, last < 0 ? lines.length : last).join("\n").split(/^Negative prompt: ?/m);
	const found = {};
	for (const [, name, value] of (lines[last] ?? "").matchAll(/\s*([A-Za-z0-9][\w \-/]*?):[ \t]*("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)/g)) found[name] = value.trim();
	const plain = (word) => word?.toLowerCase().replaceAll("++", "pp").replaceAll(" ", "-").replace("plms", "pndm").replace("align-your-steps", "ays");
	const strength = found["Denoising strength"];
	return {
		mode: strength ? "image" : "text", prompt: prompt.trim(), negative_prompt: negative.trim(), model: found.Model, size: found.Size, seed: found.Seed, strength,
		num_inference_steps: found.Steps, guidance_scale: found["CFG scale"], sampler: plain(found.Sampler), schedule: plain(found["Schedule type"] ?? found.Spacing), loras: [],
	};
}

async function readRecipe(file) {
	const { sd2rt, parameters = "" } = await pngTexts(file);
	if (!sd2rt && !parameters.trim()) return null;
	let recipe = parseParameters(parameters);
	const notes = [];
	if (sd2rt) try {
		const { task, bundle, width, height, request: fields, loras = [] } = JSON.parse(sd2rt);
		const known = [...FIELDS, ...EXTRA];
		// The other text has all digits of a large seed. What is not in this one is the model's default.
		recipe = { seed: recipe.seed, mode: Object.keys(TASKS).find((each) => TASKS[each] === task), model: bundle, loras };
		if (task !== "upscaling") recipe.size = `${width}x${height}`;
		for (const [name, value] of Object.entries(fields)) {
			if (known.includes(name) && typeof value !== "object") recipe[name] ??= value;
			else if (!["width", "height", "paste"].includes(name)) notes.push(name);
		}
	} catch {
		notes.push("sd2rt");
	}
	const there = models.flatMap(({ id, loras }) => [id, ...loras]);
	notes.push(...[recipe.model, ...recipe.loras.map(({ name }) => name)].filter((name) => name && !there.includes(name)));
	return { recipe, notes };
}

// Files that are dropped, pasted or chosen

async function take(file, asSource) {
	if (!models.length) return;
	const found = asSource ? null : await readRecipe(file);
	if (!found) {
		const wanted = mode === "text" ? Object.keys(TASKS).slice(1).find(can) : mode;
		if (wanted && await setSource(file, file.name) && wanted !== mode) setMode(wanted);
		return;
	}
	const { recipe, notes } = found;
	fill(recipe);
	const words = [t("recipeRead", file.name)];
	if (recipe.mode !== "text") words.push(t("recipeImage"));
	if (notes.length) words.push(t("recipeNotes", notes.slice(0, 6).join(", ")));
	notify(words.join(" "), t("asSource"), () => take(file, true));
}

function setUpFiles() {
	ui.image.onclick = ui.replace.onclick = () => ui.file.click();
	ui.file.onchange = async () => {
		const [file] = ui.file.files;
		if (file) await take(file, true);
		ui.file.value = "";
		if (source) ui.replace.focus();
	};
	ui.remove.onclick = () => {
		source = null;
		fitSource();
		ui.image.focus();
	};
	let inside = 0;
	const over = (change) => (event) => {
		if (!event.dataTransfer.types.includes("Files")) return;
		event.preventDefault();
		inside += change;
		show("dropping", inside > 0);
	};
	addEventListener("dragenter", over(1));
	addEventListener("dragleave", over(-1));
	addEventListener("dragover", over(0));
	addEventListener("drop", (event) => {
		inside = 0;
		over(0)(event);
		const [file] = event.dataTransfer.files;
		if (file) take(file, ui.source.contains(event.target));
	});
	addEventListener("paste", (event) => {
		const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
		if (file) take(file, true);
	});
}

// The source was sent at its size: with the recipe's size nothing of it changes.
async function reuse({ recipe, image, mask }) {
	fill(recipe);
	if (!image || !(await setSource(image))) return;
	if (mask) strokes = [{ bitmap: await createImageBitmap(mask) }];
	redraw();
}

async function sendTo(name) {
	const { blob, recipe } = selected;
	setMode(name);
	ui.size.value = "";
	ui.prompt.value ||= recipe.prompt;
	if (!(await setSource(blob))) return;
	ui.source.scrollIntoView({ block: "nearest" });
	ui[name === "inpaint" ? "mask" : "prompt"].focus({ preventScroll: true });
}

// Start

function translate() {
	document.documentElement.lang = ui.language.value = language;
	for (const each of all("[data-t]")) each.textContent = t(each.dataset.t);
	for (const each of all("[data-label]")) each.ariaLabel = t(each.dataset.label);
	ui.prompt.placeholder = t("promptHint");
	ui.negative_prompt.placeholder = t("negativeHint");
	ui.seed.placeholder = t("random");
	setState(state);
	if (models.length) {
		const [{ value: n }, { value: size }, recipe] = [ui.n, ui.size, read()];
		fill(recipe);
		[ui.n.value, ui.size.value] = [n, size];
		changed();
		fitSource();
	}
	render();
	renderList();
}

function setUp() {
	const on = (id, action) => (ui[id].onclick = action);
	ui.form.onsubmit = (event) => {
		event.preventDefault();
		generate();
	};
	ui.form.oninput = ({ target }) => {
		if (target.dataset.for) ui[target.dataset.for].value = target.value;
		changed();
	};
	addEventListener("keydown", (event) => {
		if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !ui.keyDialog.open) generate();
	});
	for (const range of all("[data-for]")) Object.assign(range, { tabIndex: -1, ariaHidden: "true" });
	ui.model.onchange = setModel;
	ui.size.onchange = ui.width.onchange = ui.height.onchange = fitSource;
	ui.sampler.onchange = () => setSchedules();
	ui.language.onchange = () => {
		language = ui.language.value;
		localStorage.setItem("sd2rt.language", language);
		translate();
	};
	const setSeed = (value) => {
		ui.seed.value = value;
		changed();
		ui.seed.focus();
	};
	on("reuse", () => setSeed(selected.recipe.seed));
	on("random", () => setSeed(""));
	on("extraClear", () => {
		extra = {};
		setSeed(ui.seed.value);
	});
	on("cancel", () => cancel(selected));
	on("again", async () => {
		await reuse(selected);
		generate();
	});
	on("use", async () => {
		await reuse(selected);
		ui.prompt.focus();
	});
	on("delete", () => {
		const keys = [...pictures.keys()], index = keys.indexOf(selected.key);
		forget("pictures", pictures, selected.key);
		select(pictures.get(keys[index + 1] ?? keys[index - 1]) ?? null);
		(ui.list.querySelector("[aria-current]") ?? ui.prompt).focus();
	});
	on("wipe", () => {
		if (!confirm(t("wipeSure"))) return;
		for (const each of pictures.keys()) forget("pictures", pictures, each);
		select(running() ? selected : null);
		ui.prompt.focus();
	});
	ui.list.onkeydown = (event) => {
		const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key], buttons = all("#list button");
		if (step) buttons[buttons.indexOf(document.activeElement) + step]?.click();
	};
	on("noticeClose", () => show("notice", false));
	ui.more.open = matchMedia("(min-width: 760px)").matches;
	setUpMask();
	setUpFiles();
}

setUp();
translate();
order(await store("pictures", "getAll").catch(() => {
	notify(t("noHistory"));
	return [];
}));
select(newest());
poll();
