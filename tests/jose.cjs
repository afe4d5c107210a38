// jose (of npm) as another implementation of JWT: takes one task as JSON on stdin, answers in JSON.
const { CompactSign, UnsecuredJWT, createRemoteJWKSet, importJWK, jwtVerify } = require("jose");

async function verify({ token, jwks, secret, options }) {
  const key = jwks ? createRemoteJWKSet(new URL(jwks)) : new TextEncoder().encode(secret);
  const { payload, protectedHeader } = await jwtVerify(token, key, options);
  return { header: protectedHeader, claims: payload };
}

async function sign({ header, claims, jwk, bytes }) {
  if (header.alg === "none") {
    return new UnsecuredJWT(claims).encode();
  }
  const key = jwk ? await importJWK(jwk, header.alg) : Buffer.from(bytes, "hex");
  const crit = Object.fromEntries((header.crit ?? []).map((name) => [name, true]));
  return new CompactSign(Buffer.from(JSON.stringify(claims))).setProtectedHeader(header).sign(key, { crit });
}

const task = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
({ verify, sign })[task.do](task).then(
  (done) => console.log(JSON.stringify({ done })),
  (error) => console.log(JSON.stringify({ refused: error.code ?? String(error) })),
);
