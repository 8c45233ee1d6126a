// Requests to the server. A judgement is tried again until an answer comes; its id makes sure that it counts once.

let csrf = '';
let trouble = () => {};

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const setCsrf = (value) => { csrf = value; };
export const onTrouble = (tell) => { trouble = tell; };
export const forget = () => { csrf = ''; sessionStorage.clear(); };

async function answered(response) {
  let value = null;
  try { value = await response.json(); } catch { /* Not ours. */ }
  if (!response.ok || value === null) throw new ApiError(value?.error || `the server answered ${response.status}`, response.status);
  return value;
}

export async function session() {
  return answered(await fetch('/api/session'));
}

export async function get(name) {
  return answered(await fetch(`/api/${name}`));
}

export async function post(name, body, again = false) {
  for (let wait = 500; ; wait = Math.min(wait * 2, 8000)) {
    try {
      return await answered(await fetch(`/api/${name}`, {
        method: 'POST', headers: { 'content-type': 'application/json', 'x-csrf-token': csrf }, body: JSON.stringify(body),
      }));
    } catch (error) {
      const lost = !(error instanceof ApiError) || error.status === 503;
      if (!lost || !again) throw lost && !(error instanceof ApiError) ? new ApiError('the server does not answer', 0) : error;
      trouble('Not saved yet: the server does not answer. Trying again.');
    }
    await new Promise((resolve) => { setTimeout(resolve, wait); });
  }
}
