// The load: so many requests a second whatever becomes of them, GET and POST in turn, each with an id of its own.
// Node's client never repeats a request by itself. One line of JSON for each that was begun, when it is over.
// load.mjs HOST PORT NAME RATE SECONDS OUT
import fs from 'node:fs';
import http from 'node:http';

const [host, port, name, rate, seconds, out] = process.argv.slice(2);
const lines = fs.createWriteStream(out);
const agent = new http.Agent({ keepAlive: true, maxSockets: Infinity, maxFreeSockets: 1024 });
const total = Math.round(rate * seconds);
const begin = performance.now();
let [sent, over, behind] = [0, 0, 0];

function end(record) {
  record.ms = Math.round(performance.now() - begin - record.at);
  lines.write(JSON.stringify(record) + '\n');
  over++;
}

function send(number) {
  const method = number % 2 ? 'POST' : 'GET';
  const id = `${method[0]}${number}`;
  const record = { id, method, at: Math.round(performance.now() - begin), answers: 0 };
  let told = false;
  const once = (more) => {
    if (!told) end(Object.assign(record, more));
    told = true;
  };
  const request = http.request({ host, port, agent, method, path: `/${id}`, headers: { host: name }, timeout: 10000 });
  request.on('response', (answer) => {
    record.answers++;
    record.status = answer.statusCode;
    record.why = answer.headers['proxy-status'];
    let body = '';
    answer.setEncoding('utf8').on('data', (piece) => (body += piece));
    answer.on('end', () => once({ body: answer.complete ? body : undefined, torn: !answer.complete }));
    answer.on('error', (error) => once({ torn: true, error: error.code }));
  });
  request.on('timeout', () => request.destroy(new Error('nothing in ten seconds')));
  request.on('error', (error) => once({ error: error.code ?? error.message }));
  request.end(method === 'POST' ? `body of ${id}` : undefined);
}

const clock = setInterval(() => {
  const due = Math.min(total, Math.floor(((performance.now() - begin) * rate) / 1000));
  behind = Math.max(behind, due - sent);
  while (sent < due) send(sent++);
  if (sent === total && over === total) {
    clearInterval(clock);
    lines.end(() => {
      console.log(JSON.stringify({ sent, behind_ms: Math.round((behind * 1000) / rate) }));
      process.exit(0);
    });
  }
}, 2);
