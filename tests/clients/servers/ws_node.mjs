// An echo server by the `ws` package: ws_node.mjs PORT
import { WebSocketServer } from 'ws';

const server = new WebSocketServer({ host: '127.0.0.1', port: Number(process.argv[2]), perMessageDeflate: true });
server.on('connection', (socket, request) => {
  socket.on('error', () => {});
  socket.on('message', (data, binary) => {
    if (request.url === '/terminate') socket.terminate();
    else socket.send(data, { binary });
  });
});
