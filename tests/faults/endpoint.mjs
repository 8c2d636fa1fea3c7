// An endpoint: node's own HTTP/1 or HTTP/2 server. It writes the id of what it executes to a file, waits a little and
// answers with the id. Faults that only a server can make of itself (resets) are ordered by a file and SIGUSR2.
// endpoint.mjs HOST PORT LEDGER ORDERS http1|http2
import fs from 'node:fs';
import http from 'node:http';
import http2 from 'node:http2';

const [host, port, ledgerPath, ordersPath, version] = process.argv.slice(2);
// O_APPEND and no buffer of our own: a line outlives kill -9.
const ledger = fs.openSync(ledgerPath, 'a');
const note = (what, id) => fs.writeSync(ledger, `${what} ${id}\n`);
const open = new Map(); // by the caller's port: HTTP/2 sessions do not hand out their sockets
const held = [];
let orders = { each: 'well' };
let most = { requests: 0, connections: 0 };
let requests = 0;

function gauge(what, now) {
  if (now > most[what]) note(`M ${what}`, (most[what] = now));
}

function reset(req) {
  open.get(req.socket.remotePort)?.resetAndDestroy();
}

function end(req, code) {
  if (req.stream) req.stream.close(code);
  else reset(req);
}

// What an answer becomes: in one piece, or torn as ordered. Only `body` leaves a caller with half an answer.
const manners = {
  well(req, res, id) {
    res.writeHead(200, { 'content-type': 'text/plain', 'content-length': Buffer.byteLength(id) });
    res.end(id);
  },
  reset: (req) => reset(req),
  refused: (req) => end(req, http2.constants.NGHTTP2_REFUSED_STREAM),
  stream: (req) => end(req, http2.constants.NGHTTP2_INTERNAL_ERROR),
  head(req) {
    if (!req.stream) req.socket.write('HTTP/1.1 200 OK\r\nContent-Le');
    reset(req);
  },
  body(req, res, id) {
    note('T', id);
    res.writeHead(200, { 'content-length': 2 * Buffer.byteLength(id) });
    res.write(id);
    setTimeout(() => reset(req), 20);
  },
};

function serve(req, res) {
  const id = new URL(req.url, 'http://here').pathname.slice(1);
  gauge('requests', ++requests);
  res.on('close', () => requests--);
  req.on('error', () => {});
  req.on('end', () => {
    const hit = orders.each !== 'well' && Math.random() < (orders.share ?? 0.5);
    // Refused is what the caller may take for not executed.
    if (hit && orders.each === 'refused') return manners.refused(req, res, id);
    note(`E ${req.method}`, id);
    const answer = () => manners[hit ? orders.each : 'well'](req, res, id);
    if (orders.hold) held.push(answer);
    else setTimeout(answer, Math.random() * 8);
  });
  req.resume();
}

const server =
  version === 'http2' ? http2.createServer({}, serve) : http.createServer({ keepAliveTimeout: 30000 }, serve);
server.on('sessionError', () => {});
server.on('connection', (socket) => {
  const caller = socket.remotePort;
  open.set(caller, socket);
  gauge('connections', open.size);
  socket.on('close', () => open.get(caller) === socket && open.delete(caller));
  socket.on('error', () => {});
});
const sessions = new Set();
server.on('session', (session) => sessions.add(session.on('close', () => sessions.delete(session))));

process.on('SIGUSR2', () => {
  orders = JSON.parse(fs.readFileSync(ordersPath, 'utf8'));
  if (orders.now) for (const socket of open.values()) socket.resetAndDestroy();
  if (orders.forget) most = { requests: 0, connections: 0 };
  if (!orders.hold) for (const answer of held.splice(0)) answer();
  note('O', orders.serial);
});
process.on('SIGTERM', () => {
  server.close(() => process.exit(0));
  server.closeIdleConnections?.();
  for (const session of sessions) session.close();
  setTimeout(() => process.exit(0), 3000).unref();
});
server.listen(Number(port), host, () => note('U', process.pid));
