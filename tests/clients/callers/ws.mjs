// A caller by the `ws` package: ws.mjs HOST:PORT NAME echo|terminate|extended; prints what it saw as JSON.
import { WebSocket } from 'ws';
import http2 from 'node:http2';
import { createHash } from 'node:crypto';

const [, , address, name, scenario] = process.argv;
const seen = [];
const done = () => { console.log(JSON.stringify(seen)); process.exit(0); };
setTimeout(() => { seen.push('timeout'); done(); }, 20000).unref();

function talk(socket) {
  const messages = ['text', Buffer.from([0, 1, 2, 255]), 'x'.repeat(1 << 20), 'ünïcode €', ''];
  const next = () => (messages.length ? socket.send(messages.shift()) : socket.ping('are you there'));
  const start = () => { seen.push(['open', socket.extensions]); next(); };
  socket.on('message', (data, binary) => {
    seen.push([binary, data.length, createHash('sha256').update(data).digest('hex')]);
    next();
  });
  socket.on('pong', (data) => { seen.push(['pong', data.toString()]); socket.close(4001, 'done here'); });
  socket.on('close', (code, reason) => { seen.push(['close', code, reason.toString()]); done(); });
  socket.on('error', (error) => seen.push(['error', error.message]));
  if (socket.readyState === WebSocket.OPEN) start(); else socket.on('open', start);
}

if (scenario === 'extended') {
  // RFC 8441: the WebSocket as a stream of an HTTP/2 connection
  const session = http2.connect(`http://${address}`);
  session.on('error', (error) => { seen.push(['session', error.message]); done(); });
  session.on('close', () => { seen.push('the session ended'); done(); });
  session.once('remoteSettings', (settings) => {
    if (!settings.enableConnectProtocol) { seen.push('extended CONNECT is not offered'); return done(); }
    const stream = session.request({ ':method': 'CONNECT', ':protocol': 'websocket', ':scheme': 'http', ':path': '/echo',
      ':authority': name, 'sec-websocket-version': '13' });
    stream.on('error', (error) => { seen.push(['stream', error.message]); done(); });
    stream.on('response', (headers) => {
      if (headers[':status'] !== 200) { seen.push(['status', headers[':status']]); return done(); }
      // ws has no public way to run over a stream that is already open: this is what its own server does. Without
      // these options it would destroy the stream a millisecond after sending its close frame.
      const socket = new WebSocket(null, undefined, { autoPong: true, closeTimeout: 20000 });
      socket._isServer = false;
      socket.setSocket(stream, Buffer.alloc(0), { allowSynchronousEvents: true, maxPayload: 1 << 24, skipUTF8Validation: false });
      talk(socket);
    });
  });
} else {
  const socket = new WebSocket(`ws://${address}/${scenario}`, { headers: { Host: name } });
  if (scenario === 'terminate') {
    socket.on('open', () => socket.send('now'));
    socket.on('error', (error) => seen.push(['error', error.message]));
    socket.on('close', (code) => { seen.push(['close', code]); done(); });
  } else talk(socket);
}
