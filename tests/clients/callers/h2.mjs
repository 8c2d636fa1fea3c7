// A caller by Node's http2: h2.mjs HOST:PORT NAME SCENARIO; prints what it saw as JSON.
import http2 from 'node:http2';

const [, , address, name, scenario] = process.argv;
const session = http2.connect(`http://${address}`, { maxSessionMemory: 200 });
const seen = [];
const done = (value) => { console.log(JSON.stringify(value ?? seen)); process.exit(0); };
session.on('error', (error) => { seen.push(['session', error.code]); done(); });
setTimeout(() => { seen.push('timeout'); done(); }, 40000).unref();

function call(path, { method = 'GET', body, trailers, cancel, then, headers = {} } = {}) {
  return new Promise((resolve) => {
    const answer = { hints: [], size: 0, data: '' };
    const stream = session.request({ ':authority': name, ':path': path, ':method': method, ...headers },
      { endStream: body === undefined && !trailers, waitForTrailers: Boolean(trailers) });
    stream.on('headers', (fields) => answer.hints.push([fields[':status'], fields.link]));
    stream.on('response', (fields) => { answer.status = fields[':status']; answer.fields = fields; });
    stream.on('trailers', (fields) => { answer.trailers = { ...fields }; });
    stream.on('data', (block) => {
      answer.size += block.length;
      if (answer.size < 4096) answer.data += block;
      if (cancel !== undefined) stream.close(cancel);
      if (then) { call(then); then = undefined; }
    });
    stream.on('error', () => {});
    stream.on('close', () => { answer.code = stream.rstCode; resolve(answer); });
    stream.on('wantTrailers', () => stream.sendTrailers(trailers));
    if (body !== undefined || trailers) stream.end(body);
  });
}

const scenarios = {
  async trailers() {
    const down = await call('/trailers', { headers: { te: 'trailers' } });
    const up = await call('/echo', { method: 'POST', body: 'with trailers', trailers: { 'x-check': 'sum' } });
    return [down.trailers, down.code, JSON.parse(up.data).trailers];
  },
  async hints() {
    const answer = await call('/early');
    return [answer.hints, answer.status, answer.data];
  },
  async resets() {
    // what the server resets with, the caller is to see
    const out = [];
    for (const code of [2, 8, 11]) {
      const answer = await call(`/reset?code=${code}`, { then: '/go' });
      out.push([code, answer.status, answer.code]);
    }
    return [out, (await call('/hello')).size];
  },
  async cancel() {
    // what the caller cancels, the server is to see; the connection and its other streams live on
    const before = JSON.parse((await call('/aborted')).data).length;
    const neighbour = call('/download?bytes=3000000');
    const answers = await Promise.all([8, 8, 8].map((code) => call('/hang', { cancel: code })));
    let codes = [];
    while (codes.length < 3) codes = JSON.parse((await call('/aborted')).data).slice(before);
    return [answers.map((a) => a.data[0]), codes, (await neighbour).size];
  },
  async refused() {
    const answer = await call('/refused');
    return [answer.status ?? 'none', answer.code];
  },
  async many() {
    const answers = await Promise.all(Array.from({ length: 500 }, (_, n) => call(`/echo?n=${n}`, { method: 'POST', body: 'b'.repeat(n * 10) })));
    return answers.map((a) => { const e = JSON.parse(a.data); return [a.status, e.target, e.size]; });
  },
  async large() {
    const [up, down] = await Promise.all([call('/upload', { method: 'POST', body: Buffer.alloc(32 << 20) }), call('/download?bytes=33554432')]);
    return [up.data, down.size];
  },
  async stalled() {
    // one stream that nobody reads must not hold back its neighbours on the same connection
    const stream = session.request({ ':authority': name, ':path': '/download?bytes=50000000' });
    await new Promise((go) => stream.once('response', go));
    stream.pause();
    const sizes = [];
    for (let n = 0; n < 20; n++) sizes.push((await call('/download?bytes=100000')).size);
    return sizes;
  },
  async crumbs() {
    const answer = await call('/echo', { headers: { cookie: ['a=1', 'b=2', 'c=3'] } });
    return [JSON.parse(answer.data).cookie, answer.fields['set-cookie']];
  },
  async heads() {
    const out = [];
    for (const [method, path] of [['HEAD', '/hello'], ['GET', '/status/204'], ['GET', '/status/304'], ['OPTIONS', '*']]) {
      const answer = await call(path, { method });
      out.push([answer.status, answer.fields?.['content-length'], answer.fields?.etag, answer.size, answer.code]);
    }
    return out;
  },
};

done(await scenarios[scenario]());
