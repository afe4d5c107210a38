// After each request: what later requests carry along.
const isJson = (pm.response.headers.get("Content-Type") || "").startsWith("application/json");
const answer = isJson ? pm.response.json() : {};

for (const name of ["tempToken", "accessToken", "refreshToken", "deviceToken", "enrolmentTicket"]) {
  if (answer[name]) {
    pm.collectionVariables.set(name, answer[name]);
  }
}
