// Judges the Prometheus operator's objects, JSON on standard input, by the types that @kubernetes-models has made of its CRDs.
// Exit code 1 where one is wrong. Those types let unknown keys pass, which the cluster would drop without a word: a key that a
// kind's schema doesn't mention anywhere is a mistake here.
import { readFileSync, readdirSync } from 'node:fs'
import { dirname, resolve } from 'node:path'

const models = `${process.env.MODULES}/@kubernetes-models/prometheus-operator`
const schemas = readdirSync(`${models}/_schemas`)
let wrong = 0
const tell = (thing, why) => {
  console.log(`${thing.kind}: ${why}`)
  wrong += 1
}

// The text of a schema and of those that it imports.
function sources(file, found = new Map()) {
  if (found.has(file)) return found.values()
  found.set(file, readFileSync(file, 'utf8'))
  for (const [, other] of found.get(file).matchAll(/from"([^"]+)"/g))
    if (other.includes('/_schemas/')) sources(`${process.env.MODULES}/${other}.js`, found)
    else if (other.startsWith('.')) sources(`${resolve(dirname(file), other).replace(/\.js$/, '')}.js`, found)
  return found.values()
}

function keys(value, found = new Set()) {
  if (Array.isArray(value)) value.forEach((item) => keys(item, found))
  else if (value && typeof value === 'object')
    for (const [key, inner] of Object.entries(value)) {
      found.add(key)
      if (!['labels', 'annotations', 'matchLabels'].includes(key)) keys(inner, found)
    }
  return found
}

for (const thing of JSON.parse(readFileSync(0, 'utf8'))) {
  const [group, version] = thing.apiVersion.split('/')
  const { [thing.kind]: Kind } = await import(`${models}/${group}/${version}/${thing.kind}.js`)
  try {
    new Kind(thing).validate()
  } catch (error) {
    tell(thing, error.message)
  }
  const known = [...sources(`${models}/_schemas/${schemas.find((file) => file.endsWith(`V1${thing.kind}.js`))}`)].join()
  for (const key of keys(thing.spec))
    if (!new RegExp(`data[0-9]*\\.${key}\\b`).test(known)) tell(thing, `nobody knows ${key}`)
}
process.exit(wrong ? 1 : 0)
