"""The sixty everyday things that the demo's corpus talks about, and four facts of each.

Plain text that `vocabulary.py` parses. It knows nothing of questions, digressions or judges; its only duty
is to stay clear of bridges and of cooking, so that an ordinary reply is never judged to be about either.

A block opens with `# category / the people who know about it`. A thing takes three lines: its name with the
pronoun that stands for it (`it` or `they`, which fixes the number of its verbs), then its four facts as
predicates, two a line.
"""

THINGS_TABLE = """
# animals / zoologists
owls (they)
  hunt at night and rest through the day; hear a mouse under thick snow
  fly without a sound on soft feathers; turn their heads almost all the way round
bees (they)
  carry pollen from one flower to the next; dance to show where the flowers are
  keep their hive warm all winter; follow one queen for most of her life
foxes (they)
  live at the edge of many towns; raise their young in a dry den
  follow the same path every evening; use their tails to keep warm
dolphins (they)
  call each other by name; sleep with half of the brain at a time
  ride the waves for fun; find their way by sound
elephants (they)
  remember old friends for years; greet each other with their trunks
  walk many miles to find water; live in families led by a grandmother
# gardens / gardeners
roses (they)
  want at least six hours of sun; grow best when they are pruned in March
  need deep water once a week; come in more than a hundred colours
hedges (they)
  give shelter to small birds; keep the wind out of a garden
  should be cut twice a year; grow thick if you trim them early
lawns (they)
  turn brown in a dry summer; need sharp blades and a patient owner
  recover quickly after rain; prefer a long cut to a short one
tulips (they)
  rest under the ground all winter; open wide on a warm morning
  look best in large groups; were once worth more than a house
oak trees (they)
  live for several hundred years; drop their acorns in the autumn
  give a home to many insects; send their roots far and wide
# weather / forecasters
rain (it)
  falls when clouds can hold no more water; fills the rivers after a dry month
  comes from warm and wet air; sounds louder on a tin roof
snow (it)
  falls in crystals with six arms; makes a whole town quiet
  reflects most of the light; melts first on the south side of a hill
thunder (it)
  follows every flash of lightning; rolls for miles over flat land
  arrives later when the storm is far away; comes from air that heats up very fast
rainbows (they)
  appear when the sun is behind you; show red on the outer edge
  need both light and falling drops; last only a few minutes
clouds (they)
  form when damp air rises; weigh far more than they seem to
  keep the ground warm at night; drift at the speed of the wind
# space / astronomers
the moon (it)
  shows us only one of its sides; pulls the seas up and down
  takes about a month to go round the earth; has no wind to blow away old footprints
comets (they)
  are made of ice and dust; grow a long tail near the sun
  return after many years; come from the cold edge of the solar system
the sun (it)
  sends us light in eight minutes; holds all the planets in place
  will shine for billions of years; has dark spots that come and go
Mars (it)
  looks red because of rusty dust; has the tallest volcano we know
  has a day almost as long as ours; was once much warmer and wetter
stars (they)
  are born in clouds of gas; shine in blue, white and red
  helped sailors find the way home; look still because they are so far away
# music / musicians
the piano (it)
  has eighty-eight keys; rewards ten minutes of practice a day
  hides hammers behind the keys; should be tuned twice a year
the violin (it)
  has four strings and no frets; sings when the bow moves slowly
  fits under the chin; is carved from maple and spruce
drums (they)
  keep the whole band together; are among the oldest instruments
  train both hands equally; sound deeper when they are larger
choirs (they)
  breathe together before each line; need low voices and high voices
  meet once a week in many towns; make shy singers brave
the guitar (it)
  has six strings on a wooden body; is easy to carry to a friend's house
  hurts the fingers for the first weeks; needs only three chords for many songs
# sport / coaches
tennis (it)
  rewards quick feet more than strong arms; starts every point with a serve
  can be played on grass or clay; teaches you to forget the last mistake
swimming (it)
  trains almost every muscle; is kind to tired knees
  gets easier once you breathe out under water; starts with floating on your back
cycling (it)
  builds strong legs without much strain; feels easier on a light frame
  is the fastest way through a busy town; calls for a good helmet
chess (it)
  begins with equal armies; is won by those who plan ahead
  punishes a careless move; has been played for over a thousand years
rowing (it)
  depends on good timing; uses the legs more than the arms
  is best learnt on calm water; starts very early in the morning
# technology / engineers
batteries (they)
  store energy in chemical form; last longer when they stay cool
  lose some charge every month; should never be thrown in the bin
passwords (they)
  should be long and hard to guess; are safest when each one is used only once
  belong in a trusted manager; must never be sent in a letter
computers (they)
  count with only ones and zeros; slow down when the memory is full
  follow orders exactly as they are written; once filled an entire room
cameras (they)
  gather light through a lens; need more time when it is dark
  blur whatever moves too quickly; work best on a steady stand
the telephone (it)
  turns a voice into a signal; made the world feel smaller
  was first shown in public in 1876; once needed a person to connect each call
# health / doctors
sleep (it)
  helps the brain sort its memories; comes sooner in a cool and dark room
  gets worse with bright screens; should last about eight hours
stretching (it)
  keeps the joints moving well; should never hurt
  works best on warm muscles; takes only five minutes a day
walking (it)
  lifts the mood within minutes; is good for the heart
  costs nothing but a little time; helps people think clearly
glasses (they)
  bend light before it reaches the eye; should be checked every two years
  sit best when the frame is light; were invented in Italy
good posture (it)
  takes the load off the back; starts with both feet on the floor
  makes deep breaths easier; fades when a chair is too low
# crafts / craftspeople
knitting (it)
  needs two needles and some wool; calms a busy mind
  begins with a row of loops; can be done on a train
pottery (it)
  starts with a lump of wet clay; asks for steady hands
  cracks if it dries too fast; is one of the oldest crafts
painting (it)
  teaches you to look closely; begins with a few light lines
  is easier in the morning light; allows many happy accidents
woodwork (it)
  calls for sharp tools; follows the grain of the wood
  begins with careful measuring; fills the house with the smell of pine
sewing (it)
  starts with a straight seam; saves many old shirts
  goes better with good light; needs strong thread
# money / accountants
budgets (they)
  show where the money goes; work best when they are simple
  should leave room for surprises; need a fresh look every month
savings (they)
  grow slowly but surely; protect a family in a bad year
  should be kept apart from daily spending; begin with a very small sum
banks (they)
  lend out most of what they hold; pay interest on deposits
  check who you are; earn money from loans
taxes (they)
  pay for schools and roads; are due once a year
  rise with a higher income; are easier with tidy papers
insurance (it)
  shares a risk among many people; costs less when the risk is low
  pays only for what the contract names; should be compared every year
# travel / guides
trains (they)
  use little energy for each passenger; run on a fixed timetable
  cross whole countries overnight; give you time to read
maps (they)
  shrink the land to fit on paper; use colours to show height
  always leave something out; still work without a signal
airports (they)
  are busiest early in the morning; ask you to come two hours ahead
  check every bag for safety; never close for long
tents (they)
  should be pitched on flat ground; stay dry when air can move through them
  pack down to a small bag; last longer if they are stored dry
passports (they)
  expire after ten years; prove where you are from
  should be copied before a trip; carry a photo and a number
# history / historians
castles (they)
  were built on high ground; kept a whole village safe
  had thick walls and narrow windows; were cold in every season
the printing press (it)
  made books cheap; spread new ideas across Europe
  used small metal letters; put many scribes out of work
Roman roads (they)
  ran as straight as they could; were built in several layers
  let an army move quickly; can still be walked today
museums (they)
  keep old things safe; show only a part of what they own
  are quiet on weekday mornings; tell stories with objects
clocks (they)
  divide the day into equal hours; once had only one hand
  made trains run on time; need a steady beat
"""
