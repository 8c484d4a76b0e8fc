// npm's smtp-server as a next hop: `node sink.js ADDRESS PORT`. One line of JSON for each message it takes, with the digest of
// its octets; prints `ready` when it listens.
const { createHash } = require("node:crypto");
const { SMTPServer } = require("smtp-server");
const [address, port] = process.argv.slice(2);
const server = new SMTPServer({
  authOptional: true,
  disabledCommands: ["AUTH"],
  size: 60 * 1024 * 1024,
  logger: false,
  disableReverseLookup: true,
  onRcptTo({ address }, session, done) {
    if (/^(r\d+|jürgen)@/u.test(address)) return done();
    done(Object.assign(new Error("no such user"), { responseCode: 550 }));
  },
  onData(stream, session, done) {
    const chunks = [];
    stream.on("data", (chunk) => chunks.push(chunk));
    stream.on("end", () => {
      const octets = Buffer.concat(chunks);
      // Received fields and signatures are added on top; the message begins where its own first field does.
      const begin = octets.indexOf("X-Interop: ");
      console.log(
        JSON.stringify({
          from: session.envelope.mailFrom && session.envelope.mailFrom.address,
          to: session.envelope.rcptTo.map((to) => to.address),
          sha256: createHash("sha256").update(octets.subarray(begin)).digest("hex"),
        }),
      );
      done();
    });
  },
});
server.on("error", (error) => console.error(error.message));
server.listen(Number(port), address, () => console.log("ready"));
