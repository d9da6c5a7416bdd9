Feature: The stream is a well-behaved event stream

  Background:
    Given a pool "words" with 1 slot

  @ORCHD-STREAM-1
  Scenario: Its headers keep proxies from collecting or keeping it
    When alice submits and streams "story":
      | prompt     | Once upon a time |
      | max_tokens | 2                |
    Then the answer is of type "text/event-stream"
    And the header "cache-control" is "no-cache, no-transform"
    And the header "x-accel-buffering" is "no"
    And the stream "story" ends with end

  @ORCHD-STREAM-4
  Scenario: While a task waits, comments keep the connection alive
    Given the setting "streaming.heartbeat_ms" is 100
    And its model takes 60000 ms to load
    When alice submits and streams "story":
      | prompt | Once upon a time |
    Then the answer is 200
    And "story" has received 3 comments
    When alice cancels "story"
    Then the stream "story" ends with error CANCELED

  @ORCHD-STREAM-1
  Scenario: Metrics come between the tokens after the first
    Given its tokens take 20 ms
    And the setting "streaming.metrics_every_ms" is 40
    When alice submits and streams "story":
      | prompt      | Once upon a time |
      | max_tokens  | 20               |
      | deadline_ms | 60000            |
    Then the stream "story" ends with end
    And the stream "story" has metrics between its tokens

  @ORCHD-STREAM-8
  Scenario: With micro-batching tokens come in blocks, and a cancel does not wait
    Given its tokens take 10 ms
    And the setting "streaming.microbatch_ms" is 250
    When alice submits and streams "story":
      | prompt     | Once upon a time |
      | max_tokens | 100              |
    Then the stream "story" ends with end
    And the stream "story" has 100 tokens
    And "story" came in fewer than 30 pieces
    When alice submits and streams "other":
      | prompt     | Once upon a time |
      | max_tokens | 3000             |
    And "other" has received 1 token
    And alice cancels "other"
    Then the stream "other" ends with error CANCELED

  @ORCHD-STREAM-6
  Scenario Outline: A character is never split: <how>
    Given its engine tears characters apart after 0 tokens in every generation
    When alice submits and streams "story":
      | prompt     | <prompt> |
      | max_tokens | 400      |
      | seed       | 11       |
    Then the stream "story" ends with end
    And every token of "story" is whole characters
    And "story" has said "<said>"

    Examples:
      | how       | prompt           | said |
      | accents   | Once upon a time | é    |
      | ideograms | 東京の物語        | 東京 |
      | emoji     | 👩‍👩‍👧 🙂       | 🌊   |

  @ORCHD-STREAM-6
  Scenario: Line breaks and quotes in a text do not break the stream
    When alice submits and streams "story":
      | prompt     | "a\n\ndata: x\r\n\"id: 7\" b" |
      | max_tokens | 3                               |
    Then the stream "story" ends with end
    And the stream "story" has 3 tokens

  @ORCHD-STREAM-5
  Scenario: When its last viewer is gone for longer than the grace, a task is canceled
    Given its tokens take 10 ms
    And the setting "streaming.disconnect_grace_ms" is 50
    When alice submits and streams "story":
      | prompt     | Once upon a time |
      | max_tokens | 3000             |
    And alice watches "story" as "second viewer"
    And "second viewer" has received 1 token
    And the viewer "story" leaves
    And "second viewer" has received 20 tokens
    And the viewer "second viewer" leaves
    Then "story" is canceled
    And "story" has the record:
      | error.code | "CANCELED" |
    And no slot of "words" is busy

  @ORCHD-STREAM-5
  Scenario: A viewer who returns within the grace keeps the task
    Given its tokens take 10 ms
    And the setting "streaming.disconnect_grace_ms" is 300
    When alice submits and streams "story":
      | prompt     | Once upon a time |
      | max_tokens | 60               |
    And "story" has received 1 token
    And the viewer "story" leaves
    And alice watches "story" as "returned"
    Then the stream "returned" ends with end

  @ORCHD-STREAM-5
  Scenario: A task that is to continue runs on without viewers
    Given its tokens take 5 ms
    And the setting "streaming.disconnect_grace_ms" is 0
    When alice submits and streams "story":
      | prompt        | Once upon a time |
      | max_tokens    | 40               |
      | on_disconnect | continue         |
    And "story" has received 1 token
    And the viewer "story" leaves
    Then "story" is done
    And "story" has the record:
      | tokens_out | 40 |

  @ORCHD-STREAM-5
  Scenario: An observer neither keeps a task nor ends it
    Given its tokens take 5 ms
    And the setting "streaming.disconnect_grace_ms" is 0
    When alice submits "unwatched":
      | prompt     | Once upon a time |
      | max_tokens | 40               |
    And alice observes "unwatched" as "observer"
    And "observer" has received 1 token
    And the viewer "observer" leaves
    Then "unwatched" is done
    When alice submits and streams "watched":
      | prompt     | Once upon a time |
      | max_tokens | 3000             |
    And alice observes "watched" as "second observer"
    And "watched" has received 1 token
    And the viewer "watched" leaves
    Then the stream "second observer" ends with error CANCELED

  @ORCHD-STREAM-2
  Scenario: A resumed stream of an ended task shows its end once more, and whoever had seen it is told to stay away
    When alice submits "story":
      | prompt     | Once upon a time |
      | max_tokens | 3                |
    And "story" is done
    And alice watches "story" as "rest" after event 3 by Last-Event-ID
    Then the stream "rest" after event 3 ends with end
    When alice watches "story" as "nothing" after event 4 by Last-Event-ID
    Then the answer is 204
    When alice watches "story" as "nothing" after event 5 by ?after
    Then the answer is 204

  @ORCHD-STREAM-2 @ORCHD-HTTP-4
  Scenario Outline: A place in the stream that is none is refused: <header> <query>
    When alice submits "story":
      | prompt     | Once upon a time |
      | max_tokens | 1                |
    And alice watches "story" with Last-Event-ID "<header>" and query "<query>"
    Then the answer is 400 INVALID_PARAMS

    Examples:
      | header | query     |
      | x      |           |
      | -1     |           |
      | 1e3    |           |
      |        | after=-1  |
      |        | after=x   |
      |        | after=1.5 |
      |        | observe=2 |
      |        | from=1    |
