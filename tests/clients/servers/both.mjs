// Node's own HTTP servers on one port, HTTP/1 and prior-knowledge HTTP/2: both.mjs PORT
import http from 'node:http';
import http2 from 'node:http2';
import net from 'node:net';
import { createHash } from 'node:crypto';

const seen = { aborted: [], resets: [] };

async function read(request) {
  const hash = createHash('sha256');
  let size = 0;
  for await (const block of request) { size += block.length; hash.update(block); }
  return { size, sha256: hash.digest('hex') };
}

function finish(response, status, fields, body = '') {
  response.writeHead(status, fields);
  response.end(body);
}

const paths = {
  '/hello': async (request, response) => finish(response, 200, { 'content-length': 100 }, 'x'.repeat(99) + '\n'),
  '/trailers': async (request, response) => {
    response.writeHead(200, { 'content-type': 'text/plain', trailer: 'x-sum, x-second' });
    response.write('body\r\n');
    response.addTrailers({ 'x-sum': '42', 'x-second': 'z' });
    response.end();
  },
  '/early': async (request, response) => {
    response.writeEarlyHints({ link: ['</a.css>; rel=preload; as=style', '</b.js>; rel=preload; as=script'] });
    finish(response, 200, {}, 'after the hints');
  },
  '/upload': async (request, response) => finish(response, 200, {}, String((await read(request)).size)),
  '/download': async (request, response) => {
    let left = Number(new URL(request.url, 'http://x').searchParams.get('bytes'));
    response.writeHead(200, { 'content-length': left });
    let wake = () => {};
    response.on('drain', () => wake()).on('close', () => wake());
    const block = Buffer.alloc(1 << 16, 'd');
    while (left > 0 && !response.destroyed) {
      const part = left < block.length ? block.subarray(0, left) : block;
      left -= part.length;
      if (!response.write(part)) await new Promise((go) => { wake = go; });
    }
    response.end();
  },
  '/reset': async (request, response) => {
    const code = Number(new URL(request.url, 'http://x').searchParams.get('code'));
    response.writeHead(200);
    // a reset drops what is still queued before it: it waits until the caller says (/go) that the part has arrived
    response.write('part');
    seen.resets.push(() => response.stream.close(code));
  },
  '/go': async (request, response) => {
    for (const reset of seen.resets.splice(0)) reset();
    finish(response, 200, {});
  },
  '/hang': async (request, response) => {
    response.writeHead(200);
    response.write('waiting');
    response.stream.on('close', () => seen.aborted.push(response.stream.rstCode));
  },
  '/aborted': async (request, response) => finish(response, 200, {}, JSON.stringify(seen.aborted)),
  '/refused': async (request, response) => response.stream.close(http2.constants.NGHTTP2_REFUSED_STREAM),
};

async function handle(request, response) {
  request.on('error', () => {});
  response.on('error', () => {});
  const path = request.url.split('?')[0];
  if (path.startsWith('/status/')) return finish(response, Number(path.slice(8)), { etag: '"e1"' });
  if (paths[path]) return paths[path](request, response);
  const body = await read(request);
  const trailers = request.trailers ?? {};
  finish(response, 200, { 'content-type': 'application/json', 'set-cookie': ['a=1', 'b=2'] }, JSON.stringify({
    version: request.httpVersion, method: request.method, target: request.url, ...body, trailers: { ...trailers },
    authority: request.headers[':authority'] ?? request.headers.host, cookie: request.headers.cookie,
    client_cert: request.headers['x-forwarded-client-cert'] }));
}

const one = http.createServer(handle);
const two = http2.createServer({ settings: { enableConnectProtocol: true }, maxSessionMemory: 200 }, handle);
two.on('sessionError', () => {});
two.on('connect', ({ stream, headers }) => {
  if (headers[':protocol'] !== 'websocket') return stream.close(http2.constants.NGHTTP2_CONNECT_ERROR);
  stream.on('error', () => {});
  stream.respond({ ':status': 200 });
  stream.pipe(stream);
});

net.createServer((socket) => {
  socket.on('error', () => {});
  socket.once('readable', () => {
    const first = socket.read();
    if (first === null) return;
    socket.unshift(first);
    (first.subarray(0, 3).toString() === 'PRI' ? two : one).emit('connection', socket);
  });
}).listen(Number(process.argv[2]), '127.0.0.1');
