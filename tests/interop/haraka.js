// Haraka's plugin of these tests, told by config/interop.json what it is for: `{ take: DOMAIN }` makes it a next hop, which
// prints one line of JSON for each message as sink.js does; `{ mx: {...} }` a client, which sends all mail there.
const { createHash } = require("node:crypto");
const { Writable } = require("node:stream");

exports.register = function () {
  Object.assign(this, this.config.get("interop.json"));
};

exports.hook_connect = function (next, connection) {
  connection.relaying = Boolean(this.mx);
  next();
};

exports.hook_rcpt = function (next, connection, [recipient]) {
  if (this.mx || (recipient.host === this.take && /^(r\d+|jürgen)$/u.test(recipient.user))) return next(OK);
  next(DENY, "no such user");
};

exports.hook_queue = function (next, connection) {
  const { message_stream, mail_from, rcpt_to } = connection.transaction;
  const chunks = [];
  const whole = new Writable({
    write(chunk, _, done) {
      chunks.push(chunk);
      done();
    },
  });
  whole.on("finish", () => {
    const octets = Buffer.concat(chunks);
    const told = {
      from: mail_from.address,
      to: rcpt_to.map((to) => to.address),
      sha256: createHash("sha256").update(octets.subarray(octets.indexOf("X-Interop: "))).digest("hex"),
    };
    process.stdout.write(JSON.stringify(told) + "\n");
    next(OK);
  });
  message_stream.pipe(whole);
};

exports.hook_get_mx = function (next) {
  this.mx ? next(OK, this.mx) : next();
};
