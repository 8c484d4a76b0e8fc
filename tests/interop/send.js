// npm's nodemailer as a client: `node send.js HOST PORT USER PASSWORD CA FROM TO FILE DSN`. Raw octets; prints the final reply.
const { readFileSync } = require("node:fs");
const nodemailer = require("nodemailer");
const [host, port, user, pass, ca, from, to, file, dsn] = process.argv.slice(2);
const transport = nodemailer.createTransport({
  host,
  port: Number(port),
  requireTLS: true,
  tls: { ca: readFileSync(ca), servername: "localhost" },
  auth: { user, pass },
});
transport
  .sendMail({ envelope: { from, to: to.split(",") }, raw: readFileSync(file), dsn: JSON.parse(dsn) })
  .then((info) => console.log(info.response))
  .catch((error) => {
    console.error(String(error));
    process.exit(1);
  })
  .finally(() => transport.close());
