// Before each request: the code of the phone, where the body asks for one (RFC 6238, with the base32 of RFC 4648).
const { HmacSHA1, enc } = require("crypto-js");

const SECONDS = 30;
const WINDOW = 2; // steps that the service lets the phone's clock be ahead

function bytes(base32) {
  const bits = [...base32].map((letter) => "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567".indexOf(letter).toString(2).padStart(5, "0"));
  const octets = bits.join("").match(/.{8}/g);
  return enc.Hex.parse(octets.map((octet) => parseInt(octet, 2).toString(16).padStart(2, "0")).join(""));
}

function codeAt(step, secret) {
  const counter = enc.Hex.parse(step.toString(16).padStart(16, "0"));
  const mac = HmacSHA1(counter, bytes(secret)).toString();
  const offset = 2 * parseInt(mac.slice(-1), 16);
  const number = parseInt(mac.slice(offset, offset + 8), 16) & 0x7fffffff;
  return String(number % 1_000_000).padStart(6, "0");
}

// A code is accepted once, and none before the last one: the next step comes early, or is waited for.
function nextCode(code, secret, last) {
  const current = Math.floor(Date.now() / 1000 / SECONDS);
  const step = Math.max(current, Number(pm.collectionVariables.get(last) || 0) + 1);
  pm.collectionVariables.set(last, step);
  pm.collectionVariables.set(code, codeAt(step, pm.collectionVariables.get(secret)));
  if (step > current + WINDOW) {
    setTimeout(() => {}, (step - WINDOW) * SECONDS * 1000 - Date.now());
  }
}

const body = String(pm.request.body || "");
if (body.includes("{{totpCode}}")) {
  nextCode("totpCode", "secret", "lastStep");
}
if (body.includes("{{newTotpCode}}")) {
  nextCode("newTotpCode", "newSecret", "newLastStep");
}
